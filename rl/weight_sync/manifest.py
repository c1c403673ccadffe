"""The manifest of a model's weights in shared memory: place and checksum of each tensor.

The sender fills buckets of anonymous shared memory and describes them in a `WeightManifest`; a receiver opens
the buckets by path and gets exactly those tensors or a `WeightError`. Imports neither vLLM, Megatron nor Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from megatron_omr.convert.hf_tensor import HfTensor
from megatron_omr.convert.tensor_file import as_bytes
from megatron_omr.dtypes import torch_dtype

ALIGNMENT = 64  # tensors start at multiples of so many bytes, so that every dtype can view them


class WeightError(ValueError):
    """A weight update does not fit the engine's model or is corrupted; nothing of it was loaded."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry(HfTensor):
    """One tensor of a bucket."""

    offset: int  # bytes from the start of the bucket
    checksum: int  # xxh3_64 of its bytes


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One piece of shared memory, which exists until its process closes it or ends."""

    path: str  # any process of the same user on this machine can open it
    num_bytes: int
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, kw_only=True)
class WeightManifest:
    """A whole model in shared memory; the manifest itself is small and can be sent to any engine on the machine."""

    version: int
    buckets: tuple[Bucket, ...]

    @property
    def entries(self) -> list[TensorEntry]:
        return [entry for bucket in self.buckets for entry in bucket.tensors]

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)


def place_tensors(tensors: Sequence[HfTensor], bucket_bytes: int) -> list[list[tuple[HfTensor, int]]]:
    """Returns buckets of tensors, in order, each with its offset: in the bucket of the one before if it fits.

    A tensor larger than `bucket_bytes` gets its own bucket.
    """
    buckets: list[list[tuple[HfTensor, int]]] = []
    offset = 0
    for tensor in tensors:
        if not buckets or offset + tensor.num_bytes > bucket_bytes:
            buckets.append([])
            offset = 0
        buckets[-1].append((tensor, offset))
        offset += -(-tensor.num_bytes // ALIGNMENT) * ALIGNMENT
    return buckets


def check_complete(manifest: WeightManifest, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compares the manifest's names and shapes with the model's.

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
    """Returns the bucket's (name, tensor) pairs, read-only views of the shared memory, after checking their sums.

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
        seen = xxhash.xxh3_64_intdigest(as_bytes(data))
        if seen != entry.checksum:
            raise WeightError(
                f"{entry.name} arrived corrupted: checksum {seen:#x}, sent as {entry.checksum:#x}; "
                "send the weights again"
            )
        pairs.append((entry.name, data.view(torch_dtype(entry.precision)).view(entry.shape)))
    return pairs
