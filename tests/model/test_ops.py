"""Changes of shape and cuts for tensor parallelism, undone exactly."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_omr.convert.ops import FlattenPatch, InterleaveQKV, Op, Pad, Same, select_rows, uncut

small = st.integers(1, 4)


@st.composite
def ops_with_tensors(draw: st.DrawFn) -> tuple[Op, list[torch.Tensor], int]:
    """An op, fitting Hugging Face tensors, and a number of tensor-parallel ranks that can share them."""
    size = draw(st.sampled_from([1, 2, 4]))
    groups, heads, head_dim = size * draw(small), draw(small), draw(small)
    tail = draw(st.sampled_from([(), (3,)]))
    rows = {"q": groups * heads * head_dim, "kv": groups * head_dim}

    def fill(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
        return [torch.randn(shape) for shape in shapes]

    qkv = dict(num_groups=groups, head_dim=head_dim)
    cases = [
        (Same(), fill((rows["q"], *tail))),
        (Same(num_pieces=2), fill((rows["q"], *tail), (rows["q"], *tail))),
        (InterleaveQKV(heads_per_group=heads, **qkv), fill(*((rows[r], *tail) for r in ("q", "kv", "kv")))),
        (InterleaveQKV(stacked=True, **qkv), fill((3 * rows["kv"], *tail))),
        (Pad(dim=0, size=5, padded_size=8, num_pieces=2), fill((5, *tail), (5, *tail))),
        (Pad(dim=1, size=5, padded_size=8), fill((rows["q"], 5))),
        (FlattenPatch(kernel=(3, 2, heads, heads)), fill((rows["q"], 3, 2, heads, heads))),
    ]
    return (*draw(st.sampled_from(cases)), size)


def build(op: Op, tensors: list[Tensor], num_rows: int) -> list[Tensor]:
    """Returns the pieces that the rows of Hugging Face tensors make, with zeros where they say so."""
    matrices = [t.flatten(1) if t.dim() > 1 else t[:, None] for t in tensors]
    width = op.padded_size if isinstance(op, Pad) and op.dim == 1 else matrices[0].size(1)
    rows = torch.zeros(num_rows, width)
    for place, (tensor, first, count) in select_rows(op.segments(num_rows), 0, num_rows):
        if tensor is not None:
            part = matrices[tensor][first : first + count]
            rows[place : place + count, : part.size(1)] = part
    return list((rows[:, 0] if tensors[0].dim() == 1 else rows).chunk(op.num_pieces))


def count_rows(op: Op, tensors: list[Tensor]) -> int:
    return 2 * op.padded_size if isinstance(op, Pad) and op.dim == 0 else sum(map(len, tensors))


def cut(pieces: list[Tensor], dim: int | None, rank: int, size: int) -> Tensor:
    return torch.cat(pieces if dim is None else [p.chunk(size, dim)[rank] for p in pieces])


@settings(max_examples=80, deadline=None)
@given(ops_with_tensors())
def test_ops_and_cuts_are_their_own_inverse(case: tuple[Op, list[torch.Tensor], int]) -> None:
    op, tensors, size = case
    pieces = build(op, tensors, count_rows(op, tensors))
    for dim in (0, None):
        shards = [cut(pieces, dim, rank, size) for rank in range(size)]
        again = op.to_hf(uncut(shards, dim, op.num_pieces))
        assert all(torch.equal(a, b) for a, b in zip(again, tensors, strict=True))
    row = tuple(pieces[0].shape[1:])
    assert all(op.hf_row(row) == tuple(tensor.shape[1:]) for tensor in tensors)


@settings(max_examples=80, deadline=None)
@given(ops_with_tensors(), st.data())
def test_parts_of_rows_follow_each_other_as_the_whole_does(
    case: tuple[Op, list[torch.Tensor], int], data: st.DataObject
) -> None:
    op, tensors, _ = case
    rows = count_rows(op, tensors)
    segments = op.segments(rows)
    between = data.draw(st.integers(0, rows))

    def single_rows(first: int, count: int) -> list[tuple[int | None, int]]:
        parts = list(select_rows(segments, first, count))
        found = [(t, hf + i if t is not None else 0) for _, (t, hf, n) in parts for i in range(n)]
        places = [place + i for place, (_, _, n) in parts for i in range(n)]
        assert places == list(range(count))
        return found

    assert single_rows(0, between) + single_rows(between, rows - between) == single_rows(0, rows)


def test_qkv_rows_are_by_group() -> None:
    q, k, v = (
        torch.arange(8.0),
        torch.arange(100.0, 104),
        torch.arange(200.0, 204),
    )  # 4 heads, 2 groups, head of 2
    (whole,) = build(InterleaveQKV(num_groups=2, heads_per_group=2, head_dim=2), [q, k, v], 16)
    assert whole.tolist() == [0, 1, 2, 3, 100, 101, 200, 201, 4, 5, 6, 7, 102, 103, 202, 203]


def test_padding_is_zero_behind_the_rows_or_columns() -> None:
    (rows, _) = build(Pad(dim=0, size=2, padded_size=3, num_pieces=2), [torch.ones(2, 2)] * 2, 6)
    (columns,) = build(Pad(dim=1, size=2, padded_size=3), [torch.ones(2, 2)], 2)
    assert rows.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert columns.tolist() == [[1, 1, 0], [1, 1, 0]]
