"""Packs examples end to end into micro-batches (pure); the only packer.

Two kinds of padding are computed and mean nothing: each sequence is padded to a multiple of `multiple` tokens, which
context parallelism cuts in equal chunks, and a batch to a multiple of `pack_multiple`, by one blank sequence at its
end: its tail. Room that is left in a pack is not padded: a batch is as long as what it holds.
Bins of first-fit are sorted by their earliest examples, and examples keep their order within a bin, so the result
depends on the input alone.
Legend: T packed tokens, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data_pipeline.encode.images import empty_patches
from data_pipeline.types import Example, PackedBatch, Tree


def pack(
    items: Sequence[Example | Tree],
    *,
    pack_length: int,
    multiple: int = 1,
    pack_multiple: int = 1,
    pad_token_id: int,
    packing: Literal["first_fit", "next_fit"] = "first_fit",
) -> list[PackedBatch]:
    """Packs whole examples or trees into batches of at most `pack_length` tokens, padding included.

    Args:
        packing: first_fit, by decreasing length, finds few packs; next_fit keeps the order and opens a new pack where
            the next item does not fit the last one.

    Raises:
        ValueError: an item, its examples padded to `multiple`, is longer than a pack.
    """
    trees, capacity = _as_trees(items), pack_capacity(pack_length, pack_multiple)
    sizes = [sum(padded_length(len(example), multiple) for example in tree.examples) for tree in trees]
    for tree, size in zip(trees, sizes, strict=True):
        if size > capacity:
            names = [example.id for example in tree.examples if example.id]
            whole = f", a multiple of {pack_multiple}" if pack_multiple > 1 else ""
            raise ValueError(
                f"{names} take {size} tokens, more than pack_length={capacity}{whole}; drop them"
            )
    fit = first_fit if packing == "first_fit" else next_fit
    return [
        merge(
            [trees[i] for i in chosen],
            multiple=multiple,
            pack_multiple=pack_multiple,
            pad_token_id=pad_token_id,
        )
        for chosen in fit(sizes, capacity)
    ]


def pack_capacity(pack_length: int, pack_multiple: int) -> int:
    """Returns the most tokens of sequences in a pack whose tail must fit `pack_length` too."""
    return pack_length // pack_multiple * pack_multiple


def merge(
    items: Sequence[Example | Tree], *, multiple: int = 1, pack_multiple: int = 1, pad_token_id: int
) -> PackedBatch:
    """Puts examples end to end in the given order, each padded at its end to a multiple of `multiple` tokens.

    A blank sequence follows where the sum is no multiple of `pack_multiple`, itself a multiple of `multiple`. Pads
    are outside the loss, and nothing attends to them but pads; their positions continue after the last real one.

    Raises:
        ValueError: the length of a root with branches is no multiple of `multiple`: its branches would see pads.
    """
    trees = _as_trees(items)
    for tree in trees:
        if tree.branches and len(tree.root) % multiple:
            raise ValueError(
                f"the root of {tree.branches[0].id!r} has {len(tree.root)} tokens, no multiple of {multiple}; "
                "cut it with share_prompt(multiple=...)"
            )
    real_lens = [len(example) for tree in trees for example in tree.examples]
    padded = [_pad(example, multiple, pad_token_id) for tree in trees for example in tree.examples]
    pixels = torch.from_numpy(np.concatenate([e.pixels.numpy() for e in padded]))
    image_grid_thw = torch.cat([e.image_grid_thw for e in padded])
    frames = [
        torch.ones(len(e.image_grid_thw), dtype=torch.int64) if e.frames is None else e.frames for e in padded
    ]
    total = sum(len(example) for example in padded)
    if tail := padded_length(total, pack_multiple) - total:
        blank = _build_blank_example(tail, pad_token_id)
        trees, padded, real_lens = [*trees, Tree(root=blank)], [*padded, blank], [*real_lens, 0]
    cu_seqlens = torch.tensor([0, *accumulate(len(e) for e in padded)], dtype=torch.int32)
    input_ids = torch.cat([e.input_ids for e in padded])
    return PackedBatch(
        ids=tuple(example.id for example in padded),
        input_ids=input_ids,
        labels=_next(input_ids, cu_seqlens),
        loss_mask=_next(torch.cat([e.loss_mask for e in padded]), cu_seqlens),
        position_ids=torch.cat([e.position_ids for e in padded], dim=1),
        cu_seqlens=cu_seqlens,
        real_lens=torch.tensor(real_lens),
        pixels=pixels,
        image_grid_thw=image_grid_thw,
        frames=torch.cat(frames) if any(e.frames is not None for e in padded) else None,
        parents=_parents(trees),
    )


def _as_trees(items: Sequence[Example | Tree]) -> list[Tree]:
    return [Tree(root=item) if isinstance(item, Example) else item for item in items]


def _parents(trees: Sequence[Tree]) -> Tensor | None:
    """Returns PackedBatch.parents of the trees."""
    if not any(tree.branches for tree in trees):
        return None
    parents: list[int] = []
    for tree in trees:
        root = len(parents)
        parents += [-1, *[root] * len(tree.branches)]
    return torch.tensor(parents)


def build_blank(*, multiple: int = 1, pack_multiple: int = 1, pad_token_id: int) -> PackedBatch:
    """Returns a micro-batch of pads outside the loss, for a rank that has no sample."""
    length = max(multiple, pack_multiple)
    return replace(
        merge([_build_blank_example(length, pad_token_id)], multiple=multiple, pad_token_id=pad_token_id),
        real_lens=torch.zeros(1, dtype=torch.int64),
    )


def _build_blank_example(length: int, pad_token_id: int) -> Example:
    pixels, image_grid_thw = empty_patches()
    return Example(
        id="",
        input_ids=torch.full((length,), pad_token_id),
        loss_mask=torch.zeros(length),
        position_ids=torch.arange(length).expand(3, length),
        pixels=pixels,
        image_grid_thw=image_grid_thw,
    )


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns bins of at most `capacity` as indices of `sizes`; bins and their items are in input order."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = next((b for b, free in enumerate(room) if free >= sizes[i]), None)
        if fitting is None:
            fitting = len(bins)
            bins.append([])
            room.append(capacity)
        bins[fitting].append(i)
        room[fitting] -= sizes[i]
    return sorted(sorted(chosen) for chosen in bins)


def next_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns bins of at most `capacity` as indices of `sizes` in input order: the released recipe's way."""
    bins: list[list[int]] = []
    room = 0
    for i, size in enumerate(sizes):
        if not bins or size > room:
            bins.append([])
            room = capacity
        bins[-1].append(i)
        room -= size
    return bins


def balance(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Assigns items to ranks, the most expensive first, each to the rank with the least cost, then the fewest items.

    Returns:
        The indices of each rank's items, in input order. Every rank that calls this gets the same assignment.
    """
    assigned: list[list[int]] = [[] for _ in range(num_ranks)]
    load = [0.0] * num_ranks
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(num_ranks), key=lambda r: (load[r], len(assigned[r])))
        assigned[rank].append(i)
        load[rank] += costs[i]
    return [sorted(items) for items in assigned]


def padded_length(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _pad(example: Example, multiple: int, pad_token_id: int) -> Example:
    count = padded_length(len(example), multiple) - len(example)
    if count == 0:
        return example
    following = torch.arange(count) + (example.position_ids.max() + 1)
    return replace(
        example,
        input_ids=torch.cat([example.input_ids, torch.full((count,), pad_token_id)]),
        loss_mask=torch.cat([example.loss_mask, torch.zeros(count)]),
        position_ids=torch.cat([example.position_ids, following.expand(3, count)], dim=1),
    )


def _next(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Returns each position's successor; the last of a sequence predicts nothing and gets 0."""
    following = values.roll(-1)
    following[cu_seqlens[1:] - 1] = 0
    return following
