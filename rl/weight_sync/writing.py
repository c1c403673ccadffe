"""Fills buckets from the trainer's export stream, and passes on each piece as soon as it is complete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
import xxhash
from torch import Tensor

from megatron_omr.convert.hf_tensor import HfTensor
from megatron_omr.convert.tensor_file import as_bytes
from megatron_omr.dtypes import torch_dtype
from rl.weight_sync.layout import Bucket, Layout, Piece, PlacedTensor

_STEP = 2**20  # bytes copied and added to the checksum while they are in a core's cache


class Outlet(Protocol):
    """The way that pieces take."""

    def reserve(self, bucket: Bucket, piece: Piece) -> Tensor:
        """Returns the memory for a piece: uint8, of the length of the piece."""
        ...

    def publish(self, bucket: Bucket, piece: Piece) -> None:
        """Lets the engines have the piece that was reserved last."""
        ...


def write_weights(weights: Iterable[tuple[str, Tensor]], layout: Layout, outlet: Outlet) -> None:
    """Writes `weights`, the tensors of `layout` in their order and on any device, bucket after bucket.

    Raises:
        ValueError: there are fewer or more than planned.
    """
    writer = _Writer(outlet)
    places = ((bucket, tensor) for bucket in layout.buckets for tensor in bucket.tensors)
    for (bucket, planned), (name, tensor) in zip(places, weights, strict=True):
        found = HfTensor(name=name, shape=tuple(tensor.shape), precision=planned.precision)
        assert found == HfTensor(name=planned.name, shape=planned.shape, precision=planned.precision) and (
            tensor.dtype == torch_dtype(planned.precision)
        ), f"{name} is not as planned"
        writer.write(bucket, planned, tensor)


class _Writer:
    """The piece that is being filled."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._pieces: list[Piece] = []
        self._checksum = xxhash.xxh3_64()

    def write(self, bucket: Bucket, planned: PlacedTensor, tensor: Tensor) -> None:
        if planned is bucket.tensors[0]:
            self._pieces, self._checksum = bucket.pieces(), xxhash.xxh3_64()
            self._memory = self._outlet.reserve(bucket, self._pieces[0])
        data, done = tensor.detach().contiguous().view(-1).view(torch.uint8).to(self._memory.device), 0
        self._bytes = as_bytes(data.cpu())
        while done < len(data):
            at = planned.offset + done
            if at == self._pieces[0].end:
                self._outlet.publish(bucket, self._pieces.pop(0))
                self._memory = self._outlet.reserve(bucket, self._pieces[0])
            count = min(len(data) - done, self._pieces[0].end - at)
            self._copy(data, done, done + count, at - self._pieces[0].start)
            done += count
        if planned is bucket.tensors[-1]:
            checksum = self._checksum.intdigest().to_bytes(8, "little")
            self._memory[-len(checksum) :].copy_(torch.frombuffer(bytearray(checksum), dtype=torch.uint8))
            self._outlet.publish(bucket, self._pieces.pop(0))

    def _copy(self, data: Tensor, start: int, end: int, place: int) -> None:
        """Copies data[start:end] to `place` in the piece."""
        target = self._memory[place : place + end - start]
        for first in range(start, end, _STEP):
            last = min(end, first + _STEP)
            target[first - start : last - start].copy_(data[first:last])
            self._checksum.update(self._bytes[first:last])
