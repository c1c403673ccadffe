"""Exports Megatron's parameters as a stream of Hugging Face tensors: to save, or to send to engines.

Parameters are gathered over tensor parallelism on the stage that holds them and broadcast over the pipeline,
several at a time: collectives cost per call, not only per byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.files import atomic_folder
from megatron_omr import cpu
from megatron_omr.convert.hf_folder import copy_template, write_tensors
from megatron_omr.convert.mapping import Rule, build_rules
from megatron_omr.convert.names import stored_name
from megatron_omr.convert.ops import uncut
from megatron_omr.convert.parameters import collect_parameters, partition_dim
from megatron_omr.dtypes import torch_dtype
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks

_BUCKET_BYTES = 64 * 2**20  # of one rank's parameters, gathered in one call


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """The stage and local shape of a parameter; equal on all tensor-parallel ranks of a stage."""

    stage: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    dim: int | None  # cut over tensor parallelism

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@torch.no_grad()
def export_weights(
    chunks: Sequence[nn.Module], model: ModelConfig, ranks: Ranks
) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor of the Hugging Face checkpoint, complete, on every rank, always in the same order.

    Collective over the model-parallel group: all its ranks must run the iterator to its end. Tensors are on
    `cpu.device()` in the parameters' dtype and may share storage: consume or copy them before the next one.

    Raises:
        ValueError: no stage holds some parameter (the same on all ranks).
    """
    local = collect_parameters(chunks)
    placements = _collect_placements(local, ranks)
    table = build_rules(model)
    missing = [rule.megatron for rule in table if rule.megatron not in placements]
    if missing:
        raise ValueError(
            f"no pipeline stage holds {missing[:5]}; the chunks are not those of this model config"
        )
    for bucket in _buckets(table, placements):
        yield from _export_bucket(bucket, local, placements, ranks)


def _collect_placements(local: dict[str, nn.Parameter], ranks: Ranks) -> dict[str, _Placement]:
    """Returns all stages' parameters; of tied copies the first stage's."""
    own = {
        name: _Placement(stage=ranks.pp_rank, shape=tuple(p.shape), dtype=p.dtype, dim=partition_dim(p))
        for name, p in local.items()
    }
    stages: list[dict[str, _Placement]] = [own] * ranks.pp_size
    if ranks.pp_size > 1:
        dist.all_gather_object(stages, own, group=ranks.pp_group())
    return {name: placement for stage in reversed(stages) for name, placement in stage.items()}


def _buckets(table: list[Rule], placements: dict[str, _Placement]) -> Iterator[list[Rule]]:
    """Yields neighbours of the same stage and dtype, up to `_BUCKET_BYTES`."""
    bucket: list[Rule] = []
    size = 0
    for rule in table:
        placement = placements[rule.megatron]
        last = placements[bucket[-1].megatron] if bucket else placement
        fits = (placement.stage, placement.dtype) == (last.stage, last.dtype)
        if not fits or size + placement.num_bytes > _BUCKET_BYTES:
            if bucket:
                yield bucket
            bucket, size = [], 0
        bucket.append(rule)
        size += placement.num_bytes
    yield bucket


def _export_bucket(
    bucket: list[Rule], local: dict[str, nn.Parameter], placements: dict[str, _Placement], ranks: Ranks
) -> Iterator[tuple[str, Tensor]]:
    first = placements[bucket[0].megatron]
    sizes = [torch.Size(placements[rule.megatron].shape).numel() for rule in bucket]
    shards = torch.empty(ranks.tp_size, sum(sizes), dtype=first.dtype, device=cpu.device())
    if first.stage == ranks.pp_rank:
        own = torch.cat([local[rule.megatron].detach().flatten() for rule in bucket])
        if ranks.tp_size > 1:
            dist.all_gather(list(shards.unbind(0)), own, group=ranks.tp_group())
        else:
            shards = own[None]
    if ranks.pp_size > 1:
        source = dist.get_global_rank(ranks.pp_group(), first.stage)
        dist.broadcast(shards, src=source, group=ranks.pp_group())
    for rule, columns in zip(bucket, shards.split(sizes, dim=1), strict=True):
        placement = placements[rule.megatron]
        pieces = uncut([c.view(placement.shape) for c in columns], placement.dim, rule.op.num_pieces)
        yield from zip(rule.hf, rule.op.to_hf(pieces), strict=True)


def save_hf(
    chunks: Sequence[nn.Module],
    model: ModelConfig,
    ranks: Ranks,
    out: str | Path,
    *,
    template: str | Path,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a Hugging Face folder that transformers and vLLM load. Collective over all ranks.

    Weights are cast to the dtype that the model's config names; config, tokenizer, processor, generation
    config and chat template are copied from the Hugging Face folder `template`. `out` appears complete or not
    at all, and replaces an older one.
    """
    weights = export_weights(chunks, model, ranks)
    if ranks.rank == 0:
        dtype = torch_dtype(model.precision)
        with atomic_folder(Path(out)) as partial:
            stored = ((stored_name(name), t.to("cpu", dtype)) for name, t in weights)
            write_tensors(stored, partial, max_shard_bytes)
            copy_template(template, partial)
    else:
        for _ in weights:
            pass
    dist.barrier()
