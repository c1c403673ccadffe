"""The layout of a model's weights on their way: which tensors come in which buckets, and where each lies.

It is known before any weight, so that engines compare names and shapes with their model first. A bucket ends with the
checksum of its tensors. Imports neither vLLM, Megatron nor Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash
from torch import Tensor

from megatron_omr.convert.hf_tensor import HfTensor
from megatron_omr.convert.tensor_file import as_bytes
from megatron_omr.dtypes import torch_dtype

ALIGNMENT = 64  # tensors start at multiples of so many bytes, so that every dtype can view them
BUCKET_BYTES = 16 * 2**20
"""Tensors are put into one bucket up to this size. It fits a processor's last cache, and gloo sends pieces of 16 MiB
as fast as a plain socket does, smaller ones more slowly."""
_CHECKSUM_BYTES = 8


class WeightError(ValueError):
    """An engine did not get the weights; until it gets them, what it has loaded may be mixed."""


class WeightMismatch(WeightError):
    """The weights are not those of the engine's model; nothing was loaded."""


@dataclass(frozen=True, kw_only=True)
class PlacedTensor(HfTensor):
    """One tensor of a bucket."""

    offset: int  # bytes from the start of the bucket


class Piece(NamedTuple):
    """Consecutive bytes of a bucket that travel together."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Consecutive bytes with whole tensors, then their checksum in the last 8 bytes."""

    start: int  # bytes from the start of the first bucket
    num_bytes: int
    tensors: tuple[PlacedTensor, ...]

    def pieces(self) -> list[Piece]:
        """Returns the pieces that the bucket travels in: one, unless it is a tensor larger than BUCKET_BYTES."""
        starts = range(0, self.num_bytes - ALIGNMENT, BUCKET_BYTES)
        return [
            Piece(start, self.num_bytes if start == starts[-1] else start + BUCKET_BYTES) for start in starts
        ]

    def views(self, memory: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, tensor): views of `memory` ([num_bytes], uint8)."""
        for tensor in self.tensors:
            data = memory[tensor.offset : tensor.offset + tensor.num_bytes]
            yield tensor.name, data.view(torch_dtype(tensor.precision)).view(tensor.shape)

    def check(self, memory: Tensor) -> None:
        """Compares the bucket's tensors with their checksum.

        Raises:
            WeightError: they differ.
        """
        checksum = xxhash.xxh3_64()
        for tensor in self.tensors:
            checksum.update(as_bytes(memory[tensor.offset : tensor.offset + tensor.num_bytes].cpu()))
        sent = int.from_bytes(bytes(memory[-_CHECKSUM_BYTES:].tolist()), "little")
        if checksum.intdigest() != sent:
            names = [tensor.name for tensor in self.tensors]
            shown = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            raise WeightError(
                f"weights arrived corrupted: the bucket of {shown} has checksum {checksum.intdigest():#x}, and was "
                f"sent with {sent:#x}"
            )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All buckets of a model, in the order in which they are sent."""

    buckets: tuple[Bucket, ...]

    @property
    def tensors(self) -> list[PlacedTensor]:
        return [tensor for bucket in self.buckets for tensor in bucket.tensors]

    @property
    def num_bytes(self) -> int:
        """The memory that all buckets take together."""
        return sum(bucket.num_bytes for bucket in self.buckets)


def read_layout(values: Mapping[str, Any]) -> Layout:
    """Rebuilds a Layout from what `dataclasses.asdict` made of it, which any serialiser may have carried."""

    def read_tensor(tensor: Mapping[str, Any]) -> PlacedTensor:
        return PlacedTensor(**{**tensor, "shape": tuple(tensor["shape"])})

    buckets = (
        Bucket(**{**bucket, "tensors": tuple(map(read_tensor, bucket["tensors"]))})
        for bucket in values["buckets"]
    )
    return Layout(buckets=tuple(buckets))


def lay_out(tensors: Sequence[HfTensor], bucket_bytes: int = BUCKET_BYTES) -> Layout:
    """Returns the buckets of these tensors, in order; one larger than `bucket_bytes` gets its own bucket."""
    groups: list[list[PlacedTensor]] = []
    offset = 0
    for tensor in tensors:
        if not groups or offset + tensor.num_bytes > bucket_bytes:
            groups.append([])
            offset = 0
        groups[-1].append(PlacedTensor(**vars(tensor), offset=offset))
        offset += _aligned(tensor.num_bytes)
    buckets: list[Bucket] = []
    for group in groups:
        start = buckets[-1].start + buckets[-1].num_bytes if buckets else 0
        size = _aligned(max(1, group[-1].offset + group[-1].num_bytes)) + ALIGNMENT
        buckets.append(Bucket(start=start, num_bytes=size, tensors=tuple(group)))
    return Layout(buckets=tuple(buckets))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def check_complete(layout: Layout, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compares names and shapes with the model's.

    Raises:
        WeightMismatch: a tensor is missing, unknown, given twice, or has another shape; the message names it.
    """
    names = [tensor.name for tensor in layout.tensors]
    problems = [f"{name} came {count} times" for name, count in Counter(names).items() if count > 1]
    sent = set(names)
    problems += [f"{name} is missing" for name in expected if name not in sent]
    for tensor in layout.tensors:
        if tensor.name not in expected:
            problems.append(f"{tensor.name} is not a tensor of this model")
        elif tensor.shape != expected[tensor.name]:
            problems.append(
                f"{tensor.name} has shape {tensor.shape}, the model wants {expected[tensor.name]}"
            )
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise WeightMismatch(
            f"the trainer's weights do not fit the engine's model: {shown}. "
            "The trainer and the engine must start from the same Hugging Face folder"
        )
