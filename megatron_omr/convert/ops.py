"""Changes of shape between Hugging Face's and Megatron's tensors: whole ones, and runs of their rows.

A Megatron tensor is one or more *pieces*, stacked along dimension 0 and cut over tensor parallelism piece by
piece: `fc1` holds a gate and an up projection, and every rank gets its part of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Segment(NamedTuple):
    """Neighbouring rows of a Megatron tensor that are neighbouring rows of one Hugging Face tensor."""

    tensor: int | None
    """Which of the tensors; None for rows of zeros."""
    first: int
    count: int


class Op(Protocol):
    """One change of shape: of whole tensors that leave Megatron, and of rows that are read or written in files."""

    @property
    def num_pieces(self) -> int: ...

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        """Turns whole pieces into whole Hugging Face tensors."""
        ...

    def segments(self, num_rows: int) -> list[Segment]:
        """Returns what the `num_rows` rows of a Megatron tensor, all its pieces stacked, consist of, in order."""
        ...

    def hf_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a Hugging Face row; where it is shorter than Megatron's `row`, zeros follow."""
        ...


@dataclass(frozen=True, kw_only=True)
class Same:
    """No change: the tensors are the pieces, one, or gate and up."""

    num_pieces: int = 1

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        return pieces

    def segments(self, num_rows: int) -> list[Segment]:
        rows = num_rows // self.num_pieces
        return [Segment(piece, 0, rows) for piece in range(self.num_pieces)]

    def hf_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        return row


@dataclass(frozen=True, kw_only=True)
class InterleaveQKV:
    """Reorders rows of q, k, v to rows by query group: [the group's q heads | its k head | its v head].

    `stacked`: Hugging Face has one tensor [q; k; v] instead of three, as in the vision tower.
    """

    num_groups: int
    head_dim: int
    heads_per_group: int = 1
    stacked: bool = False
    num_pieces: int = 1

    @property
    def _rows_of_group(self) -> list[int]:
        return [self.heads_per_group * self.head_dim, self.head_dim, self.head_dim]

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        sizes = self._rows_of_group
        by_group = pieces[0].unflatten(0, (self.num_groups, sum(sizes))).split(sizes, dim=1)
        qkv = [t.flatten(0, 1) for t in by_group]
        return [torch.cat(qkv)] if self.stacked else qkv

    def segments(self, num_rows: int) -> list[Segment]:
        sizes = self._rows_of_group
        starts = [
            self.num_groups * rows for rows in accumulate([0, *sizes[:2]])
        ]  # of q, k and v when stacked
        return [
            Segment(0, starts[i] + group * rows, rows) if self.stacked else Segment(i, group * rows, rows)
            for group in range(self.num_groups)
            for i, rows in enumerate(sizes)
        ]

    def hf_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        return row


@dataclass(frozen=True, kw_only=True)
class FlattenPatch:
    """Flattens the kernel of a convolution that sees each patch once to a linear layer's weight."""

    kernel: tuple[int, ...]  # channels, frames, rows, columns
    num_pieces: int = 1

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        return [pieces[0].unflatten(1, self.kernel)]

    def segments(self, num_rows: int) -> list[Segment]:
        return [Segment(0, 0, num_rows)]

    def hf_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        return self.kernel


@dataclass(frozen=True, kw_only=True)
class Pad:
    """Puts zeros behind `size` rows or columns of each piece, so that the layer's width divides by any tp.

    They change nothing. A gated MLP's zero rows, biases included, put out silu(0) x 0 = 0, for which the zero columns
    of the next layer wait. All their gradients are 0 too: of a gate row, silu'(0) x 0; of a linear row, silu(0) = 0; of
    a column, the 0 that comes in. Without a gate the rows put out gelu(0) = 0, so the columns' gradients are 0; the
    rows' are, although gelu'(0) = 1/2, because the zero columns let none through. Adam's step and weight decay of 0
    are 0.
    """

    dim: int
    size: int
    padded_size: int
    num_pieces: int = 1

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        return [p.narrow(self.dim, 0, self.size) for p in pieces]

    def segments(self, num_rows: int) -> list[Segment]:
        if self.dim == 1:
            return [Segment(0, 0, num_rows)]
        zeros = Segment(None, 0, self.padded_size - self.size)
        return [part for piece in range(self.num_pieces) for part in (Segment(piece, 0, self.size), zeros)]

    def hf_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        return row if self.dim == 0 else (self.size,)


@dataclass(frozen=True, kw_only=True)
class StackExperts:
    """Turns the matrices of all experts of a layer, [E, out, in], to those of published files: [E, in, out].

    gate_up_proj is [E, hidden, 2 x inner] there, with the columns of the gates first, and down_proj [E, inner, hidden].
    """

    num_pieces: int = 1

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        return [torch.cat(pieces, dim=1).transpose(1, 2).contiguous()]

    def segments(self, num_rows: int) -> list[Segment]:
        return [Segment(0, 0, num_rows)]

    def hf_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        return row[::-1]


def uncut(shards: list[Tensor], dim: int | None, num_pieces: int, stacked_dim: int = 0) -> list[Tensor]:
    """Returns whole pieces from all ranks' parts in order (any one part when `dim` is None)."""
    if dim is None or len(shards) == 1:
        return list(shards[0].chunk(num_pieces, stacked_dim))
    by_rank = [shard.chunk(num_pieces, stacked_dim) for shard in shards]
    return [torch.cat([parts[i] for parts in by_rank], dim) for i in range(num_pieces)]


def select_rows(segments: Iterable[Segment], first: int, count: int) -> Iterator[tuple[int, Segment]]:
    """Yields what the rows first:first + count consist of, each with its place among these rows."""
    start = 0
    for tensor, hf_first, rows in segments:
        low, high = max(first, start), min(first + count, start + rows)
        if low < high:
            yield low - first, Segment(tensor, hf_first + low - start, high - low)
        start += rows
