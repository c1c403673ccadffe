"""A model's weights in shared memory: where each tensor lies, and how to tell that it arrived whole.

The sender (rl/weight_sync/sender.py) fills buckets of anonymous shared memory and describes them in a
`WeightManifest`; a receiver opens the buckets by path and gets exactly those tensors or a `WeightError`.
Knows nothing of vLLM, Megatron or Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_omr.dtypes import Precision, torch_dtype

ALIGNMENT = (
    64  # bytes between the starts of tensors are a multiple of this, so that every dtype can view them
)

_ROW = 4096  # words
_WORD_WEIGHTS = np.random.default_rng(0).integers(1, 2**63, size=_ROW, dtype=np.uint64) | np.uint64(1)


class WeightError(ValueError):
    """A weight update is not what the engine's model needs; nothing of it was loaded."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a bucket."""

    name: str  # as in the Hugging Face checkpoint
    shape: tuple[int, ...]
    precision: Precision
    offset: int  # bytes from the start of the bucket
    checksum: int

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * torch_dtype(self.precision).itemsize


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One piece of shared memory. It lives as long as the process that made it keeps it."""

    path: str  # opens the memory from any process of the same user on this machine
    num_bytes: int
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, kw_only=True)
class WeightManifest:
    """A whole model in shared memory: small, safe to send to any engine on the machine, at any time."""

    version: int
    buckets: tuple[Bucket, ...]

    @property
    def entries(self) -> list[TensorEntry]:
        return [entry for bucket in self.buckets for entry in bucket.tensors]

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one tensor goes."""

    bucket: int
    offset: int
    num_bytes: int


def next_slot(previous: Slot | None, num_bytes: int, bucket_bytes: int) -> Slot:
    """The place after `previous` for a tensor of `num_bytes`: same bucket if it still fits, else a new one.

    A tensor larger than `bucket_bytes` gets a bucket of its own.
    """
    if previous is None:
        return Slot(bucket=0, offset=0, num_bytes=num_bytes)
    offset = -(-(previous.offset + previous.num_bytes) // ALIGNMENT) * ALIGNMENT
    if offset + num_bytes <= bucket_bytes:
        return Slot(bucket=previous.bucket, offset=offset, num_bytes=num_bytes)
    return Slot(bucket=previous.bucket + 1, offset=0, num_bytes=num_bytes)


def checksum(data: Tensor) -> int:
    """A sum over `data` (uint8, CPU), every 8-byte word weighted by its place, modulo 2**64.

    The weights are odd, so a change within any one word always shows; swapped or shifted words change it
    too. It runs at the speed of a memory copy, three times faster than zlib.crc32.
    """
    raw = data.numpy()
    whole = raw.size // (8 * _ROW) * (8 * _ROW)
    rest = np.zeros(8 * _ROW, dtype=np.uint8)
    rest[: raw.size - whole] = raw[whole:]
    sums = np.append(
        raw[:whole].view(np.uint64).reshape(-1, _ROW) @ _WORD_WEIGHTS, rest.view(np.uint64) @ _WORD_WEIGHTS
    )
    return int(sums @ (2 * np.arange(sums.size, dtype=np.uint64) + np.uint64(1)))


def check_complete(manifest: WeightManifest, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the manifest's names and shapes with the model's.

    Raises:
        WeightError: a tensor is missing, unknown, given twice, or has another shape; the message names it.
    """
    names = [entry.name for entry in manifest.entries]
    problems = [f"{name} came {count} times" for name, count in Counter(names).items() if count > 1]
    problems += [f"{name} is missing" for name in expected if name not in set(names)]
    for entry in manifest.entries:
        if entry.name not in expected:
            problems.append(f"{entry.name} is not a tensor of this model")
        elif entry.shape != expected[entry.name]:
            problems.append(f"{entry.name} has shape {entry.shape}, the model wants {expected[entry.name]}")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise WeightError(
            f"weight update {manifest.version} does not fit the model: {shown}. "
            "The trainer and the engine must start from the same Hugging Face folder"
        )


def open_bucket(bucket: Bucket) -> list[tuple[str, Tensor]]:
    """The bucket's (name, tensor) pairs, read-only views of the shared memory, checked byte for byte.

    Raises:
        WeightError: the memory is gone, or a tensor differs from what the sender wrote.
    """
    if not Path(bucket.path).exists() or Path(bucket.path).stat().st_size < bucket.num_bytes:
        raise WeightError(
            f"shared memory {bucket.path} of {bucket.num_bytes} bytes is gone: the trainer that made it has "
            "ended or runs on another machine; send the weights again"
        )
    memory = torch.from_file(bucket.path, shared=False, size=bucket.num_bytes, dtype=torch.uint8)
    pairs = []
    for entry in bucket.tensors:
        data = memory[entry.offset : entry.offset + entry.num_bytes]
        seen = checksum(data)
        if seen != entry.checksum:
            raise WeightError(
                f"{entry.name} arrived corrupted: checksum {seen:#x}, sent as {entry.checksum:#x}; "
                "send the weights again"
            )
        pairs.append((entry.name, data.view(torch_dtype(entry.precision)).view(entry.shape)))
    return pairs
