"""Changes of shape between Hugging Face's and Megatron's tensors, as pairs of inverse functions.

A Megatron tensor is one or more *pieces*, stacked along dimension 0 and cut over tensor parallelism piece by
piece: `fc1` holds a gate and an up projection, and every rank gets its part of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Op(Protocol):
    """One change of shape. `to_megatron` and `to_hf` are exact inverses and also run on meta tensors."""

    @property
    def num_pieces(self) -> int: ...

    def to_megatron(self, tensors: list[Tensor]) -> list[Tensor]:
        """Turns whole Hugging Face tensors into whole pieces."""
        ...

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Same:
    """No change: the tensors are the pieces, one, or gate and up."""

    num_pieces: int = 1

    def to_megatron(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        return pieces


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

    def to_megatron(self, tensors: list[Tensor]) -> list[Tensor]:
        q, k, v = tensors[0].chunk(3) if self.stacked else tensors
        by_group = [t.unflatten(0, (self.num_groups, -1)) for t in (q, k, v)]
        return [torch.cat(by_group, dim=1).flatten(0, 1)]

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        sizes = [self.heads_per_group * self.head_dim, self.head_dim, self.head_dim]
        by_group = pieces[0].unflatten(0, (self.num_groups, sum(sizes))).split(sizes, dim=1)
        qkv = [t.flatten(0, 1) for t in by_group]
        return [torch.cat(qkv)] if self.stacked else qkv


@dataclass(frozen=True, kw_only=True)
class FlattenPatch:
    """Flattens the kernel of a convolution that sees each patch once to a linear layer's weight."""

    kernel: tuple[int, ...]  # channels, frames, rows, columns
    num_pieces: int = 1

    def to_megatron(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0].flatten(1)]

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        return [pieces[0].unflatten(1, self.kernel)]


@dataclass(frozen=True, kw_only=True)
class Pad:
    """Puts zeros behind `size` rows or columns of each piece, so that the layer's width divides by any tp.

    They change nothing. A gated MLP's zero rows, biases included, put out silu(0) x 0 = 0, for which the zero columns
    of the next layer wait. All their gradients are 0 too: of a gate row, silu'(0) x 0; of a linear row, silu(0) = 0; of
    a column, the 0 that comes in. Adam's step and weight decay of 0 are 0.
    """

    dim: int
    size: int
    padded_size: int
    num_pieces: int = 1

    def to_megatron(self, tensors: list[Tensor]) -> list[Tensor]:
        behind = [0, 0] * (tensors[0].dim() - 1 - self.dim) + [
            0,
            self.padded_size - self.size,
        ]  # last dim first
        return [F.pad(t, behind) for t in tensors]

    def to_hf(self, pieces: list[Tensor]) -> list[Tensor]:
        return [p.narrow(self.dim, 0, self.size) for p in pieces]


def cut(pieces: list[Tensor], dim: int | None, rank: int, size: int) -> Tensor:
    """Returns the part of tensor-parallel rank `rank` of `size`; `dim` None means every rank holds all."""
    parts = pieces if dim is None else [p.chunk(size, dim)[rank] for p in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def uncut(shards: list[Tensor], dim: int | None, num_pieces: int) -> list[Tensor]:
    """Returns whole pieces from all ranks' parts in order (any one part when `dim` is None)."""
    if dim is None:
        return list(shards[0].chunk(num_pieces))
    by_rank = [shard.chunk(num_pieces) for shard in shards]
    return [torch.cat([parts[i] for parts in by_rank], dim) for i in range(num_pieces)]
