"""One parameter of a model: where it is in Megatron, in Hugging Face files, and in checkpoints. Imports no Megatron."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_omr.convert.ops import Op, Segment, StackExperts

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and sizes of a part of a parameter."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A Megatron parameter, its place in a checkpoint, and the Hugging Face tensors that it consists of."""

    megatron: str
    hf: tuple[str, ...]
    """By the names of transformers' modules."""
    stored: tuple[str, ...]
    """By their names in the family's published files."""
    op: Op
    shape: tuple[int, ...]
    """Of the whole parameter: its pieces stacked, all tensor-parallel ranks together, all experts in front."""
    dim: int | None
    """The dimension that tensor parallelism cuts, in each piece; None where every rank holds the whole."""
    key: str
    """Name in a checkpoint, which has the same parameter of all layers as one tensor."""
    layer: int | None = None
    num_layers: int = 0

    @property
    def global_shape(self) -> tuple[int, ...]:
        """The shape of `key` in a checkpoint: the layers first, where it belongs to one."""
        return self.shape if self.layer is None else (self.num_layers, *self.shape)

    def place(self, part: Rectangle) -> Rectangle:
        """Returns where a part of this parameter lies in `key`."""
        offset, sizes = part
        return part if self.layer is None else ((self.layer, *offset), (1, *sizes))

    @property
    def is_of_experts(self) -> bool:
        """True where Megatron has a parameter of each expert: matrices, which `shape` has as one tensor."""
        return isinstance(self.op, StackExperts)

    @property
    def stacked_dim(self) -> int:
        """The dimension along which pieces are stacked."""
        return 1 if self.is_of_experts else 0

    def hf_shapes(self) -> list[tuple[int, ...]]:
        """Returns the shapes of the Hugging Face tensors."""
        rows = [0] * len(self.hf)
        for tensor, first, count in self.segments():
            if tensor is not None:
                rows[tensor] = max(rows[tensor], first + count)
        return [(number, *self.op.hf_row(self.shape[1:])) for number in rows]

    def segments(self) -> list[Segment]:
        """Returns the runs of Hugging Face rows that the rows of the parameter are, in their order."""
        return self.op.segments(self.shape[0])

    def cut(self, tp: int) -> list[list[Rectangle]]:
        """Returns the parts of each tensor-parallel rank of `tp`: one of each piece."""
        if self.dim is None:
            return [[((0,) * len(self.shape), self.shape)]] * tp
        pieces = self.op.num_pieces if self.dim == self.stacked_dim else 1
        size = self.shape[self.dim] // pieces // tp
        sizes = (*self.shape[: self.dim], size, *self.shape[self.dim + 1 :])
        return [
            [(self._at((piece * tp + rank) * size), sizes) for piece in range(pieces)] for rank in range(tp)
        ]

    def _at(self, start: int) -> tuple[int, ...]:
        return tuple(start if dim == self.dim else 0 for dim in range(len(self.shape)))
