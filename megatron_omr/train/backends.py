"""Names what computes the parts of a training step, read from the objects that will do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer, clip_grads
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_omr import cpu
from megatron_omr.config import ComputeConfig
from megatron_omr.model.fp8 import count_emulated
from megatron_omr.model.spec import te_problem

_NAMES = {
    "transformer_engine": "Transformer Engine",
    "transformer_engine_torch": "Transformer Engine",
    "apex": "apex",
    "amp_C": "apex",
    "megatron_omr": "Megatron-OMR",
    "megatron": "Megatron-Core",
    "torch": "torch",
}
"""Packages that bring layers and kernels. The first of these in a class' ancestry does the work."""


@dataclass(frozen=True, kw_only=True)
class Backends:
    """The package behind each part."""

    linear: str
    attention: str
    window_attention: str
    norm: str
    optimizer: str
    multi_tensor: str
    weight_gradients: str
    fp8: str
    transformer_engine: str

    def line(self) -> str:
        """Returns all in one line, for a log."""
        named = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in asdict(self).items())
        return f"backends: {named}"


def find_origin(kind: type) -> str:
    """Returns the package that a class has its arithmetic from: of Transformer Engine, whatever wraps it."""
    packages = [base.__module__.partition(".")[0] for base in kind.__mro__]
    return next(name for package, name in _NAMES.items() if package in packages)


def name_backends(chunks: Sequence[Any], optimizer: MegatronOptimizer, compute: ComputeConfig) -> Backends:
    """Returns what the model chunks of this rank and its optimizer are made of."""
    decoder = chunks[0].language_model.decoder
    layer: TransformerLayer = decoder.layers[0]
    tower = chunks[0].vision_model
    windows = tower.decoder.layers[0].self_attention.core_attention if tower is not None else None
    norms = [m for m in decoder.modules() if "Norm" in type(m).__name__ and "Linear" not in type(m).__name__]
    return Backends(
        linear=find_origin(type(layer.self_attention.linear_proj)),
        attention=find_origin(type(layer.self_attention.core_attention)),
        window_attention="on another stage" if windows is None else find_origin(type(windows)),
        norm=find_origin(type(norms[0])) if norms else find_origin(type(layer.self_attention.linear_qkv)),
        optimizer=_name_optimizer(optimizer),
        multi_tensor=_NAMES.get(str(clip_grads.l2_norm_impl.__module__).partition(".")[0], "unknown"),
        weight_gradients="fused" if decoder.config.gradient_accumulation_fusion else "not fused",
        fp8=_name_fp8(compute, decoder),
        transformer_engine=f"not used, {problem}" if (problem := te_problem()) else _engine_version(),
    )


def _name_fp8(compute: ComputeConfig, decoder: TransformerBlock) -> str:
    if compute.fp8 == "off":
        return "off"
    if cpu.device() == "cuda":
        return f"{compute.fp8} of Transformer Engine"
    return f"{compute.fp8}, emulated in float32 in {count_emulated(decoder)} linear layers"


def _engine_version() -> str:
    try:
        return metadata.version("transformer-engine")
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _name_optimizer(optimizer: MegatronOptimizer) -> str:
    inner = {type(part.optimizer) for part in optimizer.chained_optimizers if part.optimizer is not None}
    inner_torch = {kind for kind in inner if issubclass(kind, torch.optim.Optimizer)}
    return ", ".join(sorted(f"{kind.__name__} of {find_origin(kind)}" for kind in inner_torch)) or "none"
