"""Whole folders: a Hugging Face folder into a Megatron checkpoint, and back."""

from __future__ import annotations

from pathlib import Path

from megatron_omr import parallel
from megatron_omr.config import ConvertConfig, ModelConfig
from megatron_omr.convert.export import save_hf
from megatron_omr.convert.load import load_hf
from megatron_omr.model.build import build_model
from megatron_omr.train.checkpoint import load_weights, read_state, save_weights


def to_megatron(config: ConvertConfig, *, rank: int, world_size: int, init_method: str) -> None:
    """Write the weights of the Hugging Face folder `config.source` as a Megatron checkpoint. Collective."""
    model = ModelConfig.from_hf(config.source)
    config.parallel.check_model(model)
    ranks = parallel.initialize(
        config.parallel, rank=rank, world_size=world_size, init_method=init_method, seed=0
    )
    chunks = build_model(model, config.parallel, ranks, precision=model.precision)
    load_hf(chunks, config.source, model, ranks)
    save_weights(chunks, Path(config.out), template=config.source)
    parallel.shutdown()


def to_hf(config: ConvertConfig, *, rank: int, world_size: int, init_method: str) -> None:
    """Write the weights of the Megatron checkpoint `config.source` as a Hugging Face folder. Collective."""
    template = Path(config.source) / "hf"
    read_state(Path(config.source))
    model = ModelConfig.from_hf(template)
    config.parallel.check_model(model)
    ranks = parallel.initialize(
        config.parallel, rank=rank, world_size=world_size, init_method=init_method, seed=0
    )
    chunks = build_model(model, config.parallel, ranks, precision=model.precision)
    load_weights(chunks, Path(config.source))
    save_hf(chunks, model, ranks, Path(config.out), template=template)
    parallel.shutdown()
