"""Writes the trainer's export stream into shared memory, where engines read it.

The memory is anonymous (memfd): the kernel frees it when the trainer ends, even by a kill, so nothing is left in
/dev/shm, and its size limit in containers does not apply. It is kept until the next update, so that an engine
started in between gets the current weights from the same manifest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import torch
import xxhash
from torch import Tensor

from megatron_omr.convert.hf_tensor import HfTensor
from megatron_omr.convert.tensor_file import as_bytes
from megatron_omr.dtypes import torch_dtype
from rl.weight_sync.manifest import Bucket, TensorEntry, WeightManifest, place_tensors

_PIECE = 2**20  # bytes copied, then added to the checksum while they are in the processor's cache


class WeightSender:
    """Writes a model's tensors into shared memory, to the same places in each update.

    One process sends (rank 0 of the trainer); the others only take part in the export. No engine may be
    reading the previous manifest while the next one is written: it would see a checksum error.
    """

    def __init__(self, tensors: Sequence[HfTensor], *, bucket_bytes: int = 256 * 2**20) -> None:
        """Takes the memory for these tensors, such as those of an ExportPlan."""
        self._places = place_tensors(tensors, bucket_bytes)
        self._memory = [_Memory(offset + last.num_bytes) for *_, (last, offset) in self._places]

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int) -> WeightManifest:
        """Copies `weights` (the tensors of this sender in their order, on any device) into shared memory.

        Raises:
            ValueError: there are fewer or more than planned.
        """
        places = ((i, *place) for i, bucket in enumerate(self._places) for place in bucket)
        entries: list[list[TensorEntry]] = [[] for _ in self._memory]
        for (i, planned, offset), (name, tensor) in zip(places, weights, strict=True):
            found = HfTensor(name=name, shape=tuple(tensor.shape), precision=planned.precision)
            assert found == planned and tensor.dtype == torch_dtype(planned.precision), (
                f"{name} is not as planned"
            )
            data = self._memory[i].data[offset : offset + planned.num_bytes]
            entry = TensorEntry(**vars(planned), offset=offset, checksum=_copy(tensor, data))
            entries[i].append(entry)
        buckets = (
            Bucket(path=memory.path, num_bytes=memory.num_bytes, tensors=tuple(tensors))
            for memory, tensors in zip(self._memory, entries, strict=True)
        )
        return WeightManifest(version=version, buckets=tuple(buckets))

    def close(self) -> None:
        """Frees the memory; manifests of this sender can no longer be read."""
        for memory in self._memory:
            memory.close()
        self._memory.clear()


def _copy(tensor: Tensor, data: Tensor) -> int:
    """Copies `tensor` into `data` (uint8, CPU); returns the checksum of the bytes."""
    source, checksum = tensor.detach().contiguous().view(-1).view(torch.uint8), xxhash.xxh3_64()
    for start in range(0, len(data), _PIECE):
        piece = data[start : start + _PIECE]
        piece.copy_(source[start : start + _PIECE])
        checksum.update(as_bytes(piece))
    return checksum.intdigest()


class _Memory:
    """Anonymous shared memory that other processes of this user open through /proc."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._fd = os.memfd_create("omr-weights")
        os.truncate(self._fd, num_bytes)  # pages are taken when first written
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.data = torch.from_file(self.path, shared=True, size=num_bytes, dtype=torch.uint8)

    def close(self) -> None:
        del self.data
        os.close(self._fd)
