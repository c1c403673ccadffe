"""Rectangles of whole tensors: what a rank writes into a checkpoint, and what it reads from one.

The format is that of torch.distributed.checkpoint, as Megatron-Core reads and writes it. Tensors are addressed by
name and place in the whole model, so that any layout reads what any other wrote.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    Metadata,
    SavePlan,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Place = tuple[str, tuple[int, ...]]
"""Key and offset of a shard, which identify it in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A rectangle of the tensor `key`, which this rank holds.

    `data` has as many elements as `sizes`, in row-major order; a function is called when they are written, so that
    a model can be written that does not fit into memory.
    """

    key: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    data: Tensor | Callable[[], Tensor]

    @property
    def place(self) -> Place:
        return self.key, self.offset

    @property
    def num_bytes(self) -> int:
        return math.prod(self.sizes) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """Returns the elements in the shape `sizes`, a view where `data` is a tensor."""
        data = self.data if isinstance(self.data, Tensor) else self.data()
        return data.detach().view(self.sizes)


@dataclass(frozen=True, kw_only=True)
class WritePlan:
    """Lists what this rank writes; made once, and the same for every checkpoint of a run."""

    places: frozenset[Place]
    """The shards that this rank writes; others write those that several ranks hold."""
    metadata: Metadata | None
    """Of the whole checkpoint, without places in files; on rank 0."""


def plan_write(shards: Sequence[Shard]) -> WritePlan:
    """Deals the shards that all ranks hold to the ranks, each once and bytes evenly. Collective where ranks are joined.

    Raises:
        ValueError: the shards of all ranks overlap, or leave a part of a tensor out.
    """
    local = SavePlan(items=[_write_item(shard) for shard in shards])
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if world_size == 1:
        plans, metadata = _global_plan([local])
        return WritePlan(places=_places(plans[0]), metadata=metadata)
    is_first = dist.get_rank() == 0
    gathered: list[Any] = [None] * world_size if is_first else []
    dist.gather_object(local, gathered if is_first else None)
    metadata, dealt, own = None, [None] * world_size, [None]
    if is_first:
        plans, metadata = _global_plan(gathered)
        dealt = [_places(plan) for plan in plans]
    dist.scatter_object_list(own, dealt if is_first else None)
    assert own[0] is not None
    return WritePlan(places=own[0], metadata=metadata)


def _global_plan(plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    return planner.create_global_plan(plans)


def _places(plan: SavePlan) -> frozenset[Place]:
    return frozenset((item.index.fqn, tuple(item.index.offset or ())) for item in plan.items)


def _write_item(shard: Shard) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(shard.key, torch.Size(shard.offset)),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=_chunk(shard),
            properties=TensorProperties(dtype=shard.dtype),
            size=torch.Size(shard.global_shape),
        ),
    )


def _chunk(shard: Shard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(shard.offset), sizes=torch.Size(shard.sizes))


def read_shards(folder: Path, shards: Sequence[Shard], metadata: Metadata) -> None:
    """Fills the tensors of `shards` in place with what the checkpoint `folder` holds at their places. Not collective.

    Elements are cast to the dtype of the tensor that they go to.

    Args:
        metadata: the contents of the folder's `.metadata`.

    Raises:
        ValueError: the checkpoint lacks a key, or holds it in another shape; the message lists them. Or it does not
            hold all elements.
    """
    if faults := list(filter(None, (_find_fault(shard, metadata) for shard in shards))):
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"{folder} is of another model: {'; '.join(faults[:5])}{more}")
    by_key: defaultdict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        by_key[shard.key].append(shard)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(
        {key: _ShardedTensor(held) for key, held in by_key.items()}, metadata, is_coordinator=True
    )
    reader = FileSystemReader(folder)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    plan = planner.create_local_plan()
    found = sum(math.prod(item.lengths) for item in plan.items)  # of shards that do not overlap
    if found != (wanted := sum(math.prod(shard.sizes) for shard in shards)):
        raise ValueError(f"{folder} holds {found} of {wanted} elements; take another step-* folder")
    reader.read_data(plan, planner).wait()


def _find_fault(shard: Shard, metadata: Metadata) -> str | None:
    found = metadata.state_dict_metadata.get(shard.key)
    if not isinstance(found, TensorStorageMetadata):
        return f"it lacks {shard.key}"
    if tuple(found.size) != shard.global_shape:
        return f"{shard.key} has shape {list(found.size)}, the model wants {list(shard.global_shape)}"
    return None


class _ShardedTensor(Tensor):
    """The shards of one key as torch's planner wants them, its protocol _Checkpointable."""

    def __new__(cls, shards: Sequence[Shard]) -> _ShardedTensor:
        shape, dtype = torch.Size(shards[0].global_shape), shards[0].dtype
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._chunks = [_chunk(shard) for shard in shards]
        self._tensors = {torch.Size(shard.offset): shard.tensor() for shard in shards}

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return self._chunks

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._tensors[index.offset]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} of shards that are read from a checkpoint")


def split_range(shape: Sequence[int], start: int, end: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts the elements start:end of a row-major tensor into rectangles (offset, sizes), in their order.

    At most 2 n - 1 for n dimensions: of a matrix the rest of a row, whole rows, and the beginning of a row.
    """
    if start >= end:
        return []
    if len(shape) == 1:
        return [((start,), (end - start,))]
    row = math.prod(shape[1:])
    first, last = -(-start // row), end // row  # whole rows
    if first > last:  # inside one row
        return _within_row(shape, last, start, end)
    rectangles = _within_row(shape, first - 1, start, first * row)
    if first < last:
        rectangles.append(((first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])))
    return rectangles + _within_row(shape, last, last * row, end)


def _within_row(
    shape: Sequence[int], index: int, start: int, end: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    row = math.prod(shape[1:])
    parts = split_range(shape[1:], start - index * row, end - index * row)
    return [((index, *offset), (1, *sizes)) for offset, sizes in parts]
