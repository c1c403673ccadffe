"""Writes the trainer's export stream into shared memory, where engines read it.

The memory is anonymous (memfd): the kernel frees it when the trainer ends, even by a kill, so nothing is left in
/dev/shm, and its size limit in containers does not apply. It is kept until the next update, so that an engine
started in between gets the current weights from the same manifest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_omr.dtypes import precision_of
from rl.weight_sync.manifest import Bucket, Slot, TensorEntry, WeightManifest, checksum, next_slot


class WeightSender:
    """Writes a model's tensors into shared memory; each update reuses the memory of the last.

    One process sends (rank 0 of the trainer); the others only take part in the export. No engine may be
    reading the previous manifest while the next one is written: it would see a checksum error.
    """

    def __init__(self, *, bucket_bytes: int = 256 * 2**20) -> None:
        self._bucket_bytes = bucket_bytes
        self._memory: list[_Memory] = []

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int) -> WeightManifest:
        """Copies `weights` (Hugging Face names, any device) into shared memory; returns their manifest.

        Raises:
            ValueError: a tensor has a dtype that weights do not have.
        """
        entries: list[list[TensorEntry]] = []
        slot: Slot | None = None
        for name, tensor in weights:
            precision = precision_of(tensor.dtype, of=name)
            slot = next_slot(slot, tensor.numel() * tensor.element_size(), self._bucket_bytes)
            data = self._reserve(slot)
            data.view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())
            if slot.bucket == len(entries):
                entries.append([])
            entry = TensorEntry(
                name=name,
                shape=tuple(tensor.shape),
                precision=precision,
                offset=slot.offset,
                checksum=checksum(data),
            )
            entries[slot.bucket].append(entry)
        buckets = (
            Bucket(path=memory.path, num_bytes=memory.num_bytes, tensors=tuple(tensors))
            for memory, tensors in zip(self._memory, entries, strict=False)
        )
        return WeightManifest(version=version, buckets=tuple(buckets))

    def _reserve(self, slot: Slot) -> Tensor:
        if slot.bucket == len(self._memory):
            self._memory.append(_Memory(max(self._bucket_bytes, slot.num_bytes)))
        elif self._memory[slot.bucket].num_bytes < slot.offset + slot.num_bytes:
            self._memory[slot.bucket].close()
            self._memory[slot.bucket] = _Memory(slot.num_bytes)
        return self._memory[slot.bucket].data[slot.offset : slot.offset + slot.num_bytes]

    def close(self) -> None:
        """Frees the memory; manifests of this sender can no longer be read."""
        for memory in self._memory:
            memory.close()
        self._memory.clear()


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
