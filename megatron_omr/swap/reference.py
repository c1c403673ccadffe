"""A second set of weights, which a trainer takes for forward passes: the frozen reference of a KL penalty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_omr import cpu
from megatron_omr.train.optimizer import await_param_gathers, list_buffers, start_param_gathers

_PIECE_BYTES = 256 << 20
"""Bytes that are exchanged at a time, which the device holds twice meanwhile."""


class Reference:
    """Keeps the weights that a trainer was built with, in their precision, but for frozen parts, which never change.

    They are the contents of the buffers in which Megatron's distributed optimizer has the trained weights, padding
    included: for a rank of a pipeline stage the bytes of its trained weights, once.

    Args:
        chunks: before their first step.
        place: host memory, pinned where there is a GPU, or the trainer's device.
    """

    def __init__(
        self, chunks: Sequence[DistributedDataParallel], place: Literal["host", "device"] = "host"
    ) -> None:
        copy = cpu.copy_to_host if place == "host" else torch.clone
        self._chunks, self._place = chunks, place
        self._kept = [copy(weights) for weights in _list_weights(chunks)]

    @property
    def nbytes(self) -> int:
        """Bytes that this rank keeps."""
        return sum(kept.nbytes for kept in self._kept)

    def on_device(self) -> list[Tensor]:
        """Returns what takes memory of the trainer's device."""
        return self._kept if self._place == "device" else []

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Gives the trainer these weights inside the block, and its own back bit for bit. Collective.

        Only forward passes may run inside: gradients and the optimizer's states are not exchanged. Weights that
        Transformer Engine has cached in FP8 are made anew by the first micro-batch of each pass, as after a step.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        start_param_gathers(self._chunks)  # with overlap: those of the last step
        await_param_gathers(self._chunks)
        for weights, kept in zip(_list_weights(self._chunks), self._kept, strict=True):
            size = _PIECE_BYTES // weights.itemsize
            for mine, other in zip(weights.split(size), kept.split(size), strict=True):
                piece = mine.clone()
                mine.copy_(other)
                other.copy_(piece)


def _list_weights(chunks: Sequence[DistributedDataParallel]) -> list[Tensor]:
    """Returns the buffers of trained weights, [any] each."""
    return [buffer.param_data for buffer in list_buffers(chunks)]
