"""Converts whole folders: a Hugging Face folder to a Megatron checkpoint, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_omr import parallel
from megatron_omr.config import ComputeConfig, ConvertConfig
from megatron_omr.convert.export import plan_export, save_hf
from megatron_omr.convert.load import load_hf
from megatron_omr.model.build import build_model
from megatron_omr.model.vlm import Qwen25VL
from megatron_omr.model_config import ModelConfig
from megatron_omr.train.checkpoint import load_weights, read_state, save_weights


def to_megatron(config: ConvertConfig, *, rank: int, world_size: int, init_method: str) -> None:
    """Writes the weights of the Hugging Face folder `config.source` as a Megatron checkpoint. Collective."""
    model = ModelConfig.from_hf(config.source)
    with _built(model, config, rank=rank, world_size=world_size, init_method=init_method) as (chunks, ranks):
        load_hf(chunks, config.source, model, ranks)
        save_weights(chunks, Path(config.out), template=config.source)


def to_hf(config: ConvertConfig, *, rank: int, world_size: int, init_method: str) -> None:
    """Writes the weights of the Megatron checkpoint `config.source` as a Hugging Face folder. Collective."""
    source, template = Path(config.source), Path(config.source) / "hf"
    read_state(source)
    model = ModelConfig.from_hf(template)
    with _built(model, config, rank=rank, world_size=world_size, init_method=init_method) as (chunks, ranks):
        load_weights(chunks, source)
        save_hf(plan_export(chunks, model, ranks), chunks, config.out, template=template)


@contextmanager
def _built(
    model: ModelConfig, config: ConvertConfig, *, rank: int, world_size: int, init_method: str
) -> Iterator[tuple[list[Qwen25VL], parallel.Ranks]]:
    """Joins the world and yields this rank's chunks, with weights yet to be loaded."""
    layout = config.parallel
    layout.check_model(model)
    ranks = parallel.initialize(layout, rank=rank, world_size=world_size, init_method=init_method, seed=0)
    compute = ComputeConfig(backend="local")  # nothing is computed: the names of weights are the same
    yield build_model(model, layout, ranks, precision=model.precision, compute=compute), ranks
    parallel.shutdown()
