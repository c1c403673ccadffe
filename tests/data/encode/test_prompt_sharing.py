"""Responses that share their prompt train as if each had a prompt of its own."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.encode.prompt_sharing import respond, share_prompt
from data_pipeline.loader.packing import merge, pack_trees
from data_pipeline.types import Example, Tree
from megatron_omr.config import ModelConfig, ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks

IMAGE = 9


def make_prompt(before: int, image: tuple[int, int] | None, after: int) -> Example:
    """Text, an image of so many rows and columns of merged patches, text."""
    rows, cols = image or (0, 0)
    ids = torch.cat([torch.full((before,), 1), torch.full((rows * cols,), IMAGE), torch.full((after,), 2)])
    grids = torch.tensor([[1, 2 * rows, 2 * cols]] if image else [], dtype=torch.int64).reshape(-1, 3)
    return Example(
        id="prompt",
        input_ids=ids,
        loss_mask=torch.zeros(len(ids)),
        position_ids=mrope_position_ids(ids, grids, image_token_id=IMAGE, spatial_merge_size=2),
        pixels=torch.randint(256, (4 * rows * cols, 588)).to(torch.uint8),
        image_grid_thw=grids,
    )


responses = st.lists(st.lists(st.integers(20, 99), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(deadline=None)
@given(
    before=st.integers(1, 9),
    image=st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 3))),
    after=st.integers(0, 9),
    answers=responses,
    multiple=st.sampled_from([1, 2, 4]),
)
def test_root_and_branch_together_are_the_whole_example(before, image, after, answers, multiple):
    prompt = make_prompt(before, image, after)
    named = {str(i): ids for i, ids in enumerate(answers)}
    tree = share_prompt(prompt, named, image_token_id=IMAGE, multiple=multiple)
    if tree is None:
        cut = (len(prompt) - 1) // multiple * multiple
        assert cut == 0 or IMAGE in prompt.input_ids[cut:]
        return
    assert len(tree.root) % multiple == 0 and not tree.root.loss_mask.any()
    for branch, (name, ids) in zip(tree.branches, named.items(), strict=True):
        whole = respond(prompt, ids, id=name)
        text = torch.cat([prompt.input_ids, torch.tensor(ids)])
        wanted = mrope_position_ids(text, prompt.image_grid_thw, image_token_id=IMAGE, spatial_merge_size=2)
        assert torch.equal(whole.position_ids, wanted)
        assert branch.id == whole.id == name
        for field in ("input_ids", "loss_mask", "position_ids"):
            parts = [getattr(tree.root, field), getattr(branch, field)]
            assert torch.equal(torch.cat(parts, dim=-1), getattr(whole, field)), field
        assert torch.equal(tree.root.pixels, whole.pixels) and not len(branch.pixels)
        assert branch.input_ids[branch.loss_mask == 1].tolist() == ids
        assert branch.loss_mask[0] == 0, "the token before the first of the response predicts it"


def test_a_pack_says_whose_branch_is_whose():
    two = share_prompt(make_prompt(4, (1, 2), 3), {"a": [20], "b": [21, 22]}, image_token_id=IMAGE)
    one = share_prompt(make_prompt(5, None, 3), {"c": [23]}, image_token_id=IMAGE)
    assert two is not None and one is not None
    plain = respond(make_prompt(3, None, 2), [24], id="d")
    batch = merge([two, plain, one], pad_token_id=0)
    assert batch.ids == ("", "a", "b", "d", "", "c")
    assert batch.parents is not None and batch.parents.tolist() == [-1, 0, 0, -1, -1, 4]
    lengths = [len(e) for e in (*two.examples, plain, *one.examples)]
    assert batch.cu_seqlens.diff().tolist() == lengths
    assert batch.prefix_lens().tolist() == [0, lengths[0], lengths[0], 0, 0, lengths[4]]
    assert merge([plain], pad_token_id=0).parents is None
    assert (sum(lengths[:3]), lengths[3], sum(lengths[4:])) == (13, 6, 9)
    packs = pack_trees([two, Tree(root=plain), one], pack_length=15, pad_token_id=0)
    assert [pack.ids for pack in packs] == [("", "a", "b"), ("d", "", "c")]


def test_a_root_that_needs_padding_is_refused():
    tree = share_prompt(make_prompt(4, None, 2), {"a": [20]}, image_token_id=IMAGE)
    assert tree is not None and len(tree.root) == 5
    with pytest.raises(ValueError, match="root of 'a' has 5 tokens, no multiple of 2"):
        merge([tree], multiple=2, pad_token_id=0)


forests = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), max_size=4)), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(forest=forests, seed=st.integers(0, 99))
def test_attention_equals_one_dense_mask(forest: list[tuple[int, list[int]]], seed: int) -> None:
    """Roots and branches of all lengths, so that prefixes and answers are padded together."""
    from megatron_omr.model.attention import AttentionPlan, attend

    lengths, parents = [], []
    for root, branches in forest:
        parents += [-1, *[len(parents)] * len(branches)]
        lengths += [root, *branches]
    sequence_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    own = sequence_T[:, None] == sequence_T
    position = torch.arange(len(sequence_T))
    mask = own & (position[:, None] >= position) | (torch.tensor(parents)[sequence_T][:, None] == sequence_T)

    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(len(sequence_T), 1, heads, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    )
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    plan = AttentionPlan.branching(cu_seqlens, torch.tensor(parents))
    ours = attend(query, key, value, plan, causal=True)
    by_head = [x.squeeze(1).transpose(0, 1) for x in (query, key, value)]
    theirs = torch.nn.functional.scaled_dot_product_attention(*by_head, attn_mask=mask, enable_gqa=True)
    theirs = theirs.transpose(0, 1).flatten(1).unsqueeze(1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad((theirs * weight).sum(), (query, key, value))
    for got, grad in zip(
        torch.autograd.grad((ours * weight).sum(), (query, key, value)), wanted, strict=True
    ):
        torch.testing.assert_close(got, grad, rtol=0, atol=1e-12)


LAYOUTS = {
    "one process": (ParallelConfig(), 1),
    "tp2 sp": (ParallelConfig(tp=2, sp=True), 2),
    "pp2": (ParallelConfig(pp=2), 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_prompts_train_like_prompts_of_their_own(tiny_hf: Path, layout: str) -> None:
    parallel, processes = LAYOUTS[layout]
    results = run_ranks(_shared_and_separate, processes, str(tiny_hf), parallel)
    assert results[-1].logprob_gap < 2e-5  # on the last stage
    for result in results:
        assert result.grad_gap < 1e-5
        assert result.num_tokens[0] < 0.6 * result.num_tokens[1]


def test_context_parallelism_refuses_shared_prompts() -> None:
    from megatron_omr.model.attention import PackedSequences

    cu_seqlens = torch.tensor([0, 8, 12], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"parallel\.cp=2"):
        PackedSequences.create(cu_seqlens, cp_size=2, parents=torch.tensor([-1, 0]))


class Comparison(NamedTuple):
    """Of the same answers with a shared prompt and with prompts of their own, on one rank."""

    logprob_gap: float  # largest difference
    grad_gap: float  # largest difference of any gradient, relative to the largest gradient
    num_tokens: list[int]


def _shared_and_separate(folder: str, parallel: ParallelConfig) -> Comparison:
    from megatron_omr.config import OptimConfig
    from megatron_omr.oracle import random_example
    from megatron_omr.train.losses import sft_loss
    from megatron_omr.train.step import MicroBatch, forward_logprobs, train_step
    from megatron_omr.train.trainer import build_trainer

    ranks, model = init_ranks(parallel), ModelConfig.from_hf(folder)
    generator = torch.Generator().manual_seed(3)
    trees, separate = [], []
    for number, images in enumerate((1, 0, 2)):
        drawn = random_example(model, str(number), images, generator)
        prompt = Example(
            id=drawn.id,
            input_ids=torch.cat([drawn.input_ids, torch.arange(40, 46)]),  # some text behind the images
            loss_mask=torch.zeros(len(drawn) + 6),
            position_ids=mrope_position_ids(
                torch.cat([drawn.input_ids, torch.arange(40, 46)]),
                drawn.image_grid_thw,
                image_token_id=model.image_token_id,
                spatial_merge_size=2,
            ),
            pixels=drawn.pixels,
            image_grid_thw=drawn.image_grid_thw,
        )
        answers = {
            f"{number}/{k}": torch.randint(30, 90, (k + 1,), generator=generator).tolist() for k in range(4)
        }
        tree = share_prompt(
            prompt, answers, image_token_id=model.image_token_id, multiple=parallel.sequence_multiple
        )
        assert tree is not None
        trees.append(tree)
        separate += [respond(prompt, ids, id=name) for name, ids in answers.items()]
    optim = OptimConfig(lr=1e-3)
    trainer = build_trainer(model, parallel, ranks, optim, precision="fp32", steps=9, hf_folder=folder)
    packs = [merge(items, multiple=parallel.sequence_multiple, pad_token_id=0) for items in (trees, separate)]
    found = [forward_logprobs(trainer, [pack]) for pack in packs]
    by_id = [_by_id(pack, got[0]) if got else {} for pack, got in zip(packs, found, strict=True)]
    assert by_id[0].keys() == by_id[1].keys()
    gap = max((float((by_id[0][i] - by_id[1][i]).abs().max()) for i in by_id[0]), default=0.0)
    grads = []
    for pack in packs:
        trainer = build_trainer(model, parallel, ranks, optim, precision="fp32", steps=9, hf_folder=folder)
        step = MicroBatch(packed=pack, loss=partial(sft_loss, batch=pack))
        train_step(trainer, [step])
        grads.append([p.main_grad.clone() for p in trainer.chunks[0].parameters()])
    largest = max(float(grad.abs().max()) for grad in grads[1])
    difference = max(float((a - b).abs().max()) for a, b in zip(*grads, strict=True))
    return Comparison(
        logprob_gap=gap, grad_gap=difference / largest, num_tokens=[pack.num_tokens for pack in packs]
    )


def _by_id(pack, logprobs_T):
    """Logprobs of the learned tokens of each response."""
    learned = pack.loss_mask.bool()
    bounds = pairwise(pack.cu_seqlens.tolist())
    return {
        name: logprobs_T[a:b][learned[a:b]] for name, (a, b) in zip(pack.ids, bounds, strict=True) if name
    }
