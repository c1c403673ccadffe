"""Packing keeps every token once and apart; balancing is complete, and even by cost."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.recipe_batch import BATCH, PACK_LENGTH, draw_sizes
from data_pipeline.loader.packing import balance, build_blank, first_fit, merge, next_fit, pack
from data_pipeline.types import Example, PackedBatch, Tree
from megatron_omr.config import ParallelConfig

PAD = 0


def make_example(number: int, length: int, *, images: int = 0) -> Example:
    """Token t of example n is 1000n + t + 1, every token but the first is to be learned or not by parity."""
    tokens = torch.arange(length)
    return Example(
        id=f"example/{number}",
        input_ids=1_000 * number + tokens + 1,
        loss_mask=((tokens + number) % 2 == 0).float() * (tokens > 0),
        position_ids=tokens.expand(3, length) + torch.tensor([[0], [2], [1]]),
        pixels=torch.full((4 * images, 6), number % 256, dtype=torch.uint8),
        image_grid_thw=torch.tensor([[1, 2, 2]] * images, dtype=torch.int64).reshape(-1, 3),
    )


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@settings(deadline=None)
@given(
    lengths=lengths,
    multiple=st.sampled_from([1, 2, 4]),
    parts=st.sampled_from([1, 2, 4]),
    pack_length=st.integers(48, 120),
    packing=st.sampled_from(["first_fit", "next_fit"]),
)
def test_every_token_is_kept_once_and_nothing_crosses(lengths, multiple, parts, pack_length, packing):
    examples = [make_example(n, length, images=n % 3) for n, length in enumerate(lengths)]
    batches = pack(
        examples,
        pack_length=pack_length,
        multiple=multiple,
        pack_multiple=multiple * parts,
        pad_token_id=PAD,
        packing=packing,
    )
    packed = [i for batch in batches for i in batch.ids if i]
    names = [e.id for e in examples]
    assert packed == names if packing == "next_fit" else sorted(packed) == sorted(names)
    by_id = {e.id: e for e in examples}
    for batch in batches:
        assert batch.num_tokens <= pack_length and batch.num_tokens % (multiple * parts) == 0
        assert batch.num_real_tokens == sum(len(by_id[i]) for i in batch.ids if i)
        batch = check_tail(batch, multiple * parts)
        assert batch.cu_seqlens.dtype == torch.int32
        bounds = batch.cu_seqlens.tolist()
        assert bounds[0] == 0 and bounds[-1] == batch.num_tokens and len(bounds) == batch.num_sequences + 1
        for example_id, start, end in zip(batch.ids, bounds, bounds[1:], strict=False):
            check_sequence(batch, by_id[example_id], slice(start, end), multiple)
        members = [by_id[i] for i in batch.ids]
        assert torch.equal(batch.pixels, torch.cat([e.pixels for e in members]))
        assert torch.equal(batch.image_grid_thw, torch.cat([e.image_grid_thw for e in members]))


def check_tail(batch: PackedBatch, pack_multiple: int) -> PackedBatch:
    """Checks the blank sequence at the end, if there is one, and returns the batch without it."""
    if batch.ids[-1]:
        return batch
    start, end = batch.cu_seqlens[-2:].tolist()
    assert 0 < end - start < pack_multiple and batch.real_lens[-1] == 0
    assert not batch.loss_mask[start:].any() and (batch.input_ids[start:] == PAD).all()
    assert batch.position_ids[:, start:].tolist() == [list(range(end - start))] * 3
    return replace(
        batch,
        ids=batch.ids[:-1],
        cu_seqlens=batch.cu_seqlens[:-1],
        input_ids=batch.input_ids[:start],
        labels=batch.labels[:start],
        loss_mask=batch.loss_mask[:start],
        position_ids=batch.position_ids[:, :start],
    )


def check_sequence(batch, example: Example, where: slice, multiple: int) -> None:
    ids, labels, mask = batch.input_ids[where], batch.labels[where], batch.loss_mask[where]
    real = len(example)
    assert len(ids) % multiple == 0 and len(ids) - real < multiple
    assert torch.equal(ids[:real], example.input_ids) and (ids[real:] == PAD).all()
    assert torch.equal(labels[:-1], ids[1:])
    assert labels[-1] == 0 and mask[-1] == 0
    # exactly the tokens to learn are predicted, each from the token before it
    assert torch.equal(labels[mask == 1], example.input_ids[example.loss_mask == 1])
    assert (mask[real - 1 :] == 0).all()
    positions = batch.position_ids[:, where]
    assert torch.equal(positions[:, :real], example.position_ids)
    first_pad = int(example.position_ids.max()) + 1
    assert positions[:, real:].tolist() == [list(range(first_pad, first_pad + len(ids) - real))] * 3


def test_merge_of_one_by_hand():
    example = Example(
        id="a",
        input_ids=torch.tensor([7, 8, 9]),
        loss_mask=torch.tensor([0.0, 1.0, 1.0]),
        position_ids=torch.arange(3).expand(3, 3),
        pixels=torch.empty(0, 6, dtype=torch.uint8),
        image_grid_thw=torch.empty(0, 3, dtype=torch.int64),
    )
    batch = merge([example], multiple=4, pad_token_id=PAD)
    assert batch.input_ids.tolist() == [7, 8, 9, PAD]
    assert batch.labels.tolist() == [8, 9, PAD, 0]
    assert batch.loss_mask.tolist() == [1, 1, 0, 0]
    assert batch.cu_seqlens.tolist() == [0, 4]


def test_an_example_longer_than_a_pack_is_refused_by_name():
    with pytest.raises(ValueError, match=r"example/3.*12 tokens.*pack_length=10"):
        pack([make_example(3, 9)], pack_length=10, multiple=4, pad_token_id=PAD)


def test_the_tail_fits_the_pack():
    """Of 11 tokens 8 are the largest multiple of 4."""
    batches = pack([make_example(n, 4) for n in range(3)], pack_length=11, pack_multiple=4, pad_token_id=PAD)
    assert [batch.num_tokens for batch in batches] == [8, 4]
    with pytest.raises(ValueError, match=r"9 tokens, more than pack_length=8, a multiple of 4"):
        pack([make_example(0, 9)], pack_length=11, pack_multiple=4, pad_token_id=PAD)


def test_a_tree_keeps_its_parents_before_a_tail():
    root, branches = make_example(0, 6), (make_example(1, 3), make_example(2, 2))
    batch = merge([Tree(root=root, branches=branches)], pack_multiple=8, pad_token_id=PAD)
    assert batch.cu_seqlens.tolist() == [0, 6, 9, 11, 16] and batch.real_lens.tolist() == [6, 3, 2, 0]
    assert batch.parents is not None and batch.parents.tolist() == [-1, 0, 0, -1]
    assert batch.prefix_lens().tolist() == [0, 6, 6, 0]


def test_a_blank_batch_holds_nothing():
    batch = build_blank(multiple=4, pack_multiple=16, pad_token_id=PAD)
    assert batch.num_tokens == 16 and batch.num_real_tokens == 0 and not batch.loss_mask.any()
    assert batch.ids == ("",)


def test_next_fit_by_hand():
    assert next_fit([4, 5, 2, 9, 1, 10], 10) == [[0, 1], [2], [3, 4], [5]]


# tp, cp, sp and what float8 aligns to
LAYOUTS = [(1, 1, 1), (4, 2, 1), (8, 1, 16), (8, 2, 128)]


@pytest.mark.parametrize(("tp", "cp", "alignment"), LAYOUTS)
@pytest.mark.parametrize("packing", ["first_fit", "next_fit"])
def test_padding_of_the_recipe_is_below_two_percent(tp: int, cp: int, alignment: int, packing) -> None:
    parallel = ParallelConfig(tp=tp, cp=cp, sp=tp > 1)
    sizes = draw_sizes(BATCH, seed=1, images=False)
    batches = pack(
        [make_example(n, size.tokens) for n, size in enumerate(sizes)],
        pack_length=PACK_LENGTH,
        multiple=parallel.sequence_multiple,
        pack_multiple=parallel.pack_multiple(alignment),
        pad_token_id=PAD,
        packing=packing,
    )
    real = sum(batch.num_real_tokens for batch in batches)
    assert real == sum(size.tokens for size in sizes)
    assert 1 - real / sum(batch.num_tokens for batch in batches) < 0.02
    full = batches[:-1] if packing == "next_fit" else sorted(batches, key=lambda b: b.num_tokens)[1:]
    fill = sum(batch.num_real_tokens for batch in full) / len(full) / PACK_LENGTH
    assert fill > (0.98 if packing == "first_fit" else 0.9)


def test_no_examples_give_no_packs():
    assert pack([], pack_length=10, pad_token_id=PAD) == []


@given(sizes=st.lists(st.integers(1, 50), max_size=60), capacity=st.integers(50, 100))
def test_first_fit_is_complete_tight_and_in_order(sizes, capacity):
    bins = first_fit(sizes, capacity)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in chosen) for chosen in bins]
    assert all(load <= capacity for load in loads)
    assert sum(load <= capacity / 2 for load in loads) <= 1  # two half-empty bins would have been one
    assert bins == sorted(bins) and all(chosen == sorted(chosen) for chosen in bins)


@given(costs=st.lists(st.integers(0, 1_000), max_size=60), num_ranks=st.integers(1, 8))
def test_balance_is_complete_and_within_the_most_expensive_item(costs, num_ranks):
    assigned = balance(costs, num_ranks)
    assert len(assigned) == num_ranks
    assert sorted(i for items in assigned for i in items) == list(range(len(costs)))
    loads = [sum(costs[i] for i in items) for items in assigned]
    assert max(loads) - min(loads) <= max(costs, default=0)


@settings(deadline=None, max_examples=50)
@given(costs=st.lists(st.integers(0, 100), max_size=7), num_ranks=st.integers(1, 3))
def test_largest_cost_is_within_the_bound_of_longest_first(costs, num_ranks):
    """Graham: longest-first is at most 4/3 - 1/(3m) of the optimum, here found by trying every assignment."""
    loads = [sum(costs[i] for i in items) for items in balance(costs, num_ranks)]
    optimum = min(
        max(sum(cost for cost, rank in zip(costs, ranks, strict=True) if rank == r) for r in range(num_ranks))
        for ranks in product(range(num_ranks), repeat=len(costs))
    )
    assert 3 * num_ranks * max(loads) <= (4 * num_ranks - 1) * optimum


def test_skewed_costs_are_balanced_by_cost_not_by_number():
    """One sample costs as much as ten others: it gets a rank to itself, whatever its place."""
    for place in range(11):
        costs = [10] * 10
        costs.insert(place, 100)
        assigned = balance(costs, 2)
        assert sorted(map(len, assigned)) == [1, 10] and [place] in assigned
    costs = [2**n for n in range(12)]
    loads = [sum(costs[i] for i in items) for items in balance(costs, 2)]
    assert sorted(loads) == [2**11 - 1, 2**11], "powers of two: the best split is known"


def test_balance_of_equal_costs_is_even_in_number():
    assert [len(items) for items in balance([0] * 10, 4)] == [3, 3, 2, 2]
    assert [len(items) for items in balance([7] * 8, 4)] == [2, 2, 2, 2]
