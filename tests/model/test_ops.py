"""Changes of shape and cuts for tensor parallelism, undone exactly."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_omr.convert.ops import FlattenPatch, InterleaveQKV, Op, Pad, Same, cut, uncut

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


@settings(max_examples=80, deadline=None)
@given(ops_with_tensors())
def test_ops_and_cuts_are_their_own_inverse(case: tuple[Op, list[torch.Tensor], int]) -> None:
    op, tensors, size = case
    pieces = op.to_megatron(tensors)
    assert len(pieces) == op.num_pieces
    for dim in (0, None):
        shards = [cut(pieces, dim, rank, size) for rank in range(size)]
        again = op.to_hf(uncut(shards, dim, op.num_pieces))
        assert all(torch.equal(a, b) for a, b in zip(again, tensors, strict=True))


def test_qkv_rows_of_a_rank_are_whole_groups() -> None:
    q, k, v = torch.arange(8), torch.arange(100, 104), torch.arange(200, 204)  # 4 heads, 2 groups, head of 2
    op = InterleaveQKV(num_groups=2, heads_per_group=2, head_dim=2)
    second = cut(op.to_megatron([q, k, v]), 0, 1, 2)
    assert second.tolist() == [4, 5, 6, 7, 102, 103, 202, 203]


def test_gate_and_up_are_cut_apart() -> None:
    second = cut(Same(num_pieces=2).to_megatron([torch.arange(4), torch.arange(10, 14)]), 0, 1, 2)
    assert second.tolist() == [2, 3, 12, 13]


def test_padding_is_zero_behind_the_rows_or_columns() -> None:
    (rows,) = Pad(dim=0, size=2, padded_size=3).to_megatron([torch.ones(2, 2)])
    (columns,) = Pad(dim=1, size=2, padded_size=3).to_megatron([torch.ones(2, 2)])
    assert rows.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert columns.tolist() == [[1, 1, 0], [1, 1, 0]]
