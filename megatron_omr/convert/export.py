"""Exports Megatron's parameters as a stream of Hugging Face tensors: to save, to send to engines, or to compare.

A plan, made once per run, says where every parameter is and which tensors come from it in which order; every stream
follows it. Parameters go to rank 0, over tensor parallelism on the stage that holds them, then from that stage to the
first, several at a time: collectives cost per call, not only per byte. Experts, which are spread over other ranks as
well, go there a layer at a time, all experts in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.files import atomic_folder
from megatron_omr import cpu
from megatron_omr.convert.hf_folder import MAX_FILE_BYTES, HfWriter, copy_template
from megatron_omr.convert.hf_tensor import HfTensor
from megatron_omr.convert.mapping import build_rules
from megatron_omr.convert.ops import uncut
from megatron_omr.convert.parameters import collect_stacks
from megatron_omr.convert.rule import Rule
from megatron_omr.dtypes import precision_of, torch_dtype
from megatron_omr.model_config import ModelConfig
from megatron_omr.parallel import Ranks

_BUCKET_BYTES = 64 * 2**20  # of one rank's parameters, gathered in one call


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The stage and local shape of a parameter; equal on all ranks of a stage that hold a part of it.

    The shape of experts has the number of a rank's experts in front.
    """

    stage: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """Describes every export of a run; all but `ranks` is the same on all ranks."""

    ranks: Ranks
    placements: Mapping[str, Placement]  # by Megatron's names
    buckets: tuple[tuple[Rule, ...], ...]  # gathered in one call each
    tensors: tuple[HfTensor, ...]  # in the order of the stream


def plan_export(chunks: Sequence[nn.Module], model: ModelConfig, ranks: Ranks) -> ExportPlan:
    """Returns the plan of all exports of these chunks, whose weights may change, but not their places. Collective.

    Raises:
        ValueError: no stage holds some parameter (the same on all ranks), or one has a dtype that weights do not have.
    """
    placements = _collect_placements(collect_stacks(chunks), ranks)
    table = build_rules(model)
    missing = [rule.megatron for rule in table if rule.megatron not in placements]
    if missing:
        raise ValueError(
            f"no pipeline stage holds {missing[:5]}; the chunks are not those of this model config"
        )
    return ExportPlan(
        ranks=ranks,
        placements=placements,
        buckets=tuple(_fill_buckets(table, placements)),
        tensors=tuple(t for rule in table for t in _describe(rule, placements[rule.megatron].dtype)),
    )


@torch.no_grad()
def stream(plan: ExportPlan, chunks: Sequence[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yields `plan.tensors` with their data, complete, on rank 0; on the others it takes part and yields nothing.

    Every rank must run the iterator to its end. Tensors are on `cpu.device()` and may share storage with each other
    and with the parameters: consume or copy them before the next one.
    """
    ranks = plan.ranks
    buckets = [bucket for bucket in plan.buckets if _takes_part(bucket, ranks)]
    if not buckets:  # another replica: rank 0's has all
        return
    local = collect_stacks(chunks)
    memory = torch.empty(
        max(_num_bytes(bucket, plan) for bucket in buckets), dtype=torch.uint8, device=cpu.device()
    )
    tensors = iter(plan.tensors)
    for bucket in buckets:
        for rule, shards in zip(bucket, _gather(bucket, plan, local, memory), strict=False):
            pieces = _join(rule, shards, ranks)
            for name, tensor in zip(rule.hf, rule.op.to_hf(pieces), strict=True):
                planned = next(tensors)
                assert (name, tensor.shape) == (planned.name, planned.shape), f"{name} is not as planned"
                yield name, tensor


def _takes_part(bucket: Sequence[Rule], ranks: Ranks) -> bool:
    """Returns whether this rank is among those that gather the bucket, on its stage or on the first."""
    if bucket[0].is_of_experts:
        return ranks.edp_rank == 0
    return ranks.dp_rank == ranks.cp_rank == 0


def _num_holders(bucket: Sequence[Rule], ranks: Ranks) -> int:
    return ranks.ep_size * ranks.etp_size if bucket[0].is_of_experts else ranks.tp_size


def _num_bytes(bucket: Sequence[Rule], plan: ExportPlan) -> int:
    """Returns the bytes of the parts of all ranks that hold one."""
    own = sum(plan.placements[rule.megatron].num_bytes for rule in bucket)
    return own * _num_holders(bucket, plan.ranks)


def _join(rule: Rule, shards: list[Tensor], ranks: Ranks) -> list[Tensor]:
    """Returns the whole pieces of a parameter from the parts of all ranks."""
    size = ranks.etp_size if rule.is_of_experts else len(shards)
    groups = [shards[first : first + size] for first in range(0, len(shards), size)]
    by_group = [uncut(group, rule.dim, rule.op.num_pieces, rule.stacked_dim) for group in groups]
    if len(by_group) == 1:
        return by_group[0]
    return [
        torch.cat(parts) for parts in zip(*by_group, strict=True)
    ]  # the experts of one EP rank after the other


def _collect_placements(local: Mapping[str, Sequence[nn.Parameter]], ranks: Ranks) -> dict[str, Placement]:
    """Returns all stages' parameters; of tied copies the first stage's."""
    own = {}
    for name, (first, *others) in local.items():
        number = [1 + len(others)] if ".mlp.experts." in name else []
        own[name] = Placement(stage=ranks.pp_rank, shape=(*number, *first.shape), dtype=first.dtype)
    stages: list[dict[str, Placement]] = [own] * ranks.pp_size
    if ranks.pp_size > 1:
        dist.all_gather_object(stages, own, group=ranks.pp_group())
    return {name: placement for stage in reversed(stages) for name, placement in stage.items()}


def _fill_buckets(table: Sequence[Rule], placements: Mapping[str, Placement]) -> Iterator[tuple[Rule, ...]]:
    """Yields neighbours of the same stage, dtype and kind (experts or not), up to `_BUCKET_BYTES`."""

    def kind(rule: Rule) -> tuple[int, torch.dtype, bool]:
        placement = placements[rule.megatron]
        return placement.stage, placement.dtype, rule.is_of_experts

    bucket: list[Rule] = []
    size = 0
    for rule in table:
        placement = placements[rule.megatron]
        fits = not bucket or kind(rule) == kind(bucket[-1])
        if not fits or size + placement.num_bytes > _BUCKET_BYTES:
            if bucket:
                yield tuple(bucket)
            bucket, size = [], 0
        bucket.append(rule)
        size += placement.num_bytes
    yield tuple(bucket)


def _describe(rule: Rule, dtype: torch.dtype) -> Iterator[HfTensor]:
    """Yields the tensors that a parameter becomes."""
    precision = precision_of(dtype, of=rule.megatron)
    for name, shape in zip(rule.hf, rule.hf_shapes(), strict=True):
        yield HfTensor(name=name, shape=shape, precision=precision)


def _gather(
    bucket: Sequence[Rule], plan: ExportPlan, local: Mapping[str, Sequence[nn.Parameter]], memory: Tensor
) -> list[list[Tensor]]:
    """Returns each parameter's shards by rank on the first rank, in `memory`; nothing elsewhere.

    The ranks are those of tensor parallelism, of experts those of EP and ETP.
    """
    ranks, placements = plan.ranks, [plan.placements[rule.megatron] for rule in bucket]
    stage, sizes = placements[0].stage, [placement.num_elements for placement in placements]
    of_experts, num_holders = bucket[0].is_of_experts, _num_holders(bucket, ranks)
    number = ranks.ep_rank * ranks.etp_size + ranks.etp_rank if of_experts else ranks.tp_rank
    is_first, is_holder = number == ranks.pp_rank == 0, ranks.pp_rank == stage
    own = [[parameter.detach() for parameter in local[rule.megatron]] for rule in bucket] if is_holder else []
    if num_holders == 1 and stage == 0 and not of_experts:  # nothing to move
        return [[parameter] for (parameter,) in own]
    shards = memory.view(placements[0].dtype)[: num_holders * sum(sizes)].view(num_holders, -1)
    if is_holder:
        torch.cat([parameter.flatten() for stack in own for parameter in stack], out=shards[0])
        if num_holders > 1:
            received = list(shards.unbind(0)) if number == 0 else None
            group = ranks.expert_group() if of_experts else ranks.tp_group()
            dist.gather(shards[0], received, group=group, group_dst=0)
        if stage > 0 and number == 0:
            dist.send(shards, group=ranks.pp_group(), group_dst=0)
    elif is_first:
        dist.recv(shards, group=ranks.pp_group(), group_src=stage)
    if not is_first:
        return []
    columns = zip(shards.split(sizes, dim=1), placements, strict=True)
    return [[shard.view(placement.shape) for shard in column] for column, placement in columns]


def save_hf(
    plan: ExportPlan,
    chunks: Sequence[nn.Module],
    out: str | Path,
    *,
    template: str | Path,
    max_shard_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes a Hugging Face folder that transformers and vLLM load, a tensor at a time. Collective over all ranks.

    Weights are cast to the dtype that the template's config names; config, tokenizer, processor, generation
    config and chat template are copied from the Hugging Face folder `template`. `out` appears complete or not
    at all, and replaces an older one.

    Raises:
        OSError: the folder cannot be written, or the disk is full; an older one is as it was.
    """
    weights = stream(plan, chunks)
    if plan.ranks.rank == 0:
        _write_folder(plan, weights, Path(out), template, max_shard_bytes)
    for _ in weights:  # the others take part in gathering them
        pass
    dist.barrier()


def _write_folder(
    plan: ExportPlan, weights: Iterable[tuple[str, Tensor]], out: Path, template: str | Path, max_bytes: int
) -> None:
    dtype = torch_dtype(ModelConfig.from_hf(template).precision)
    rules = (rule for bucket in plan.buckets for rule in bucket)
    stored = {name: own for rule in rules for name, own in zip(rule.hf, rule.stored, strict=True)}
    entries = [(stored[tensor.name], tensor.shape, dtype) for tensor in plan.tensors]
    try:
        with atomic_folder(out) as partial, HfWriter(partial, entries, max_bytes) as writer:
            for name, tensor in weights:
                writer.write(stored[name], tensor.to("cpu", dtype))
            copy_template(template, partial)
    except OSError as error:
        free = disk_usage(next(parent for parent in out.absolute().parents if parent.exists())).free
        raise OSError(
            f"{out} could not be written ({error}); {free / 1e9:.3g} GB are free there without it. Make room, or "
            "make the folder writable, and run the same command again: it continues from the newest checkpoint"
        ) from error
