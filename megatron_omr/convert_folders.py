"""Converts whole folders: a Hugging Face folder to a Megatron checkpoint, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch.distributed as dist

from data_pipeline.files import atomic_folder, partial_folder
from megatron_omr import parallel
from megatron_omr.checkpoint.files import write_metadata, write_shards
from megatron_omr.checkpoint.manifest import check_files, read_manifest, sum_file, write_manifest
from megatron_omr.checkpoint.metadata import read_metadata
from megatron_omr.checkpoint.shards import plan_write, read_shards
from megatron_omr.checkpoint.state import weight_shards
from megatron_omr.config import ComputeConfig, ConvertConfig
from megatron_omr.convert.export import plan_export, save_hf
from megatron_omr.convert.hf_folder import copy_template
from megatron_omr.convert.load import load_hf
from megatron_omr.model.build import build_model
from megatron_omr.model.vlm import Qwen25VL
from megatron_omr.model_config import ModelConfig


def to_megatron(config: ConvertConfig, *, rank: int, world_size: int, init_method: str) -> None:
    """Writes the weights of the Hugging Face folder `config.source` as a Megatron checkpoint. Collective."""
    model = ModelConfig.from_hf(config.source)
    with _built(model, config, rank=rank, world_size=world_size, init_method=init_method) as (chunks, ranks):
        load_hf(chunks, config.source, model, ranks)
        _save_weights(chunks, Path(config.out), template=config.source)


def to_hf(config: ConvertConfig, *, rank: int, world_size: int, init_method: str) -> None:
    """Writes the weights of the Megatron checkpoint `config.source` as a Hugging Face folder. Collective."""
    source, template = Path(config.source), Path(config.source) / "hf"
    check_files(source, read_manifest(source))
    model = ModelConfig.from_hf(template)
    with _built(model, config, rank=rank, world_size=world_size, init_method=init_method) as (chunks, ranks):
        read_shards(source, weight_shards(chunks), read_metadata(source))
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


def _save_weights(chunks: list[Qwen25VL], out: Path, template: str) -> None:
    shards = weight_shards(chunks)
    plan = plan_write(shards)
    own = [shard for shard in {s.place: s for s in shards}.values() if shard.place in plan.places]
    is_first, rank = dist.get_rank() == 0, dist.get_rank()
    with atomic_folder(out) if is_first else nullcontext(partial_folder(out)) as folder:
        dist.barrier()
        written: list = [None] * dist.get_world_size()
        dist.all_gather_object(written, write_shards(folder / f"__{rank}_0.distcp", own))
        if is_first:
            assert plan.metadata is not None
            write_metadata(folder, plan.metadata, written)
            copy_template(template, folder / "hf")
            files = [path for path in folder.rglob("*") if path.is_file()]
            fields = {"step": 0, "world_size": 0, "layout": {}, "device": "cpu", "state": {}}
            write_manifest(folder, fields, {str(f.relative_to(folder)): sum_file(f) for f in files})
    dist.barrier()
