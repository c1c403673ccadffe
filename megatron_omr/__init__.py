"""Qwen2.5-VL on Megatron-Core: model, conversion, training step, checkpoints, supervised fine-tuning."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _MegatronFinder(MetaPathFinder):
    """Lets `megatron_omr.cpu` prepare this machine when any module first imports megatron.core."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "megatron.core":
            return None
        from megatron_omr import cpu

        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = cpu.prepared(spec.loader.exec_module)
        return spec


sys.meta_path.insert(0, _MegatronFinder())
