"""A weight-transfer backend for vLLM: loads the weights of a `WeightManifest` from shared memory.

The model is changed only after the whole manifest was found complete and uncorrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from megatron_omr.convert.names import modern_name
from rl.weight_sync.manifest import WeightError, WeightManifest, check_complete, open_bucket

BACKEND = "omr_shared_memory"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Empty: each update contains the place of its memory."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    manifest: WeightManifest


class SharedMemoryReceiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Runs inside each vLLM worker."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._expected = read_expected_shapes(Path(self.model_config.model), self.model)
        self._received: list[tuple[str, Tensor]] = []

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        self._received = []

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # the base class waits for the accelerator here, which reading shared memory does not need
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        manifest = update_info.manifest
        check_complete(manifest, self._expected)
        self._received = [pair for bucket in manifest.buckets for pair in open_bucket(bucket)]

    def finish_weight_update(self) -> None:
        if not self._received:
            raise WeightError(
                "finish_weight_update without weights; call update_weights with a manifest first"
            )
        initialize_layerwise_reload(self.model)
        self.model.load_weights(iter(self._received))
        finalize_layerwise_reload(self.model, self.model_config)
        if is_tied(self.model):
            refresh_tied_heads(self.model)
        self._received = []  # unmaps the memory

    def shutdown(self) -> None:
        self._received = []

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """vLLM up to 0.26 requires this method; the trainer uses rl.weight_sync.sender.WeightSender."""
        raise WeightError("send weights with rl.weight_sync.sender.WeightSender")


def read_expected_shapes(folder: Path, model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the checkpoint that vLLM loaded, spelled as exports spell them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightError(f"{folder} has no .safetensors file with the names of the model's tensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            shapes |= {modern_name(name): tuple(tensors.get_slice(name).get_shape()) for name in names}
    if is_tied(model):
        shapes.pop("lm_head.weight", None)
    return shapes


def is_tied(model: torch.nn.Module) -> bool:
    return model.config.get_text_config().tie_word_embeddings


def refresh_tied_heads(model: torch.nn.Module) -> None:
    """Updates output heads that are tied to the embedding.

    vLLM's CPU build multiplies by a packed copy of the head's weight, made when weights are loaded. An update
    holds no weight for a tied head, so its copy would keep the older weights.
    """
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


def register() -> None:
    """Registers the backend with vLLM in this process, once; also vLLM's plugin entry for its own workers."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryReceiver)
