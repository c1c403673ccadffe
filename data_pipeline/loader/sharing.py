"""Copies packed batches into memory that other processes of this machine read without another copy.

The memory is anonymous (memfd): the kernel frees it when no process uses it, even after a kill, and the size limit of
/dev/shm does not apply. Others open it through /proc of the process that wrote it, while that holds it open.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from data_pipeline.types import PackedBatch

_ALIGNMENT = 64  # bytes at whose multiples tensors begin


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Dtype, shape and offset of a tensor in the shared memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class BatchPlace:
    """The places of a batch's tensors, by its fields; those that are None are left out."""

    ids: tuple[str, ...]
    tensors: dict[str, TensorPlace]


@dataclass(frozen=True, kw_only=True)
class BatchesPlace:
    """What another process needs to open batches."""

    path: str
    num_bytes: int
    batches: tuple[BatchPlace, ...]


class SharedBatches(list[PackedBatch]):
    """Copies of batches in shared memory. Others can open them until close(), or until this list is gone."""

    def __init__(self, batches: Sequence[PackedBatch]) -> None:
        places, end = [], 0
        for batch in batches:
            tensors = {}
            for name, tensor in _tensors(batch).items():
                place = TensorPlace(dtype=tensor.dtype, shape=tuple(tensor.shape), offset=end)
                end += -(-place.num_bytes // _ALIGNMENT) * _ALIGNMENT
                tensors[name] = place
            places.append(BatchPlace(ids=batch.ids, tensors=tensors))
        fd = os.memfd_create("omr-batches")
        self.close = weakref.finalize(self, os.close, fd)
        os.truncate(fd, max(1, end))
        self.place = BatchesPlace(
            path=f"/proc/{os.getpid()}/fd/{fd}", num_bytes=max(1, end), batches=tuple(places)
        )
        super().__init__(open_batches(self.place))
        for copy, batch in zip(self, batches, strict=True):
            for name, tensor in _tensors(batch).items():
                getattr(copy, name).copy_(tensor)


def open_batches(place: BatchesPlace) -> list[PackedBatch]:
    """Returns the batches that another process, or this one, wrote there; they stay after it has closed them.

    Raises:
        RuntimeError: the memory cannot be opened, for example because that process has ended.
    """
    memory = torch.from_file(place.path, shared=True, size=place.num_bytes, dtype=torch.uint8)
    return [
        PackedBatch(ids=batch.ids, **{name: _view(memory, tensor) for name, tensor in batch.tensors.items()})
        for batch in place.batches
    ]


def _tensors(batch: PackedBatch) -> dict[str, Tensor]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _view(memory: Tensor, place: TensorPlace) -> Tensor:
    data = memory[place.offset : place.offset + place.num_bytes]
    return data.view(place.dtype).view(place.shape)
