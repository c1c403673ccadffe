"""Responses that share their prompt train as if each had its own copy of the prompt."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.encode.positions import mrope_position_ids
from data_pipeline.encode.prompt_sharing import respond, share_prompt
from data_pipeline.loader.packing import merge
from data_pipeline.types import Example
from megatron_omr.config import ParallelConfig
from megatron_omr.model_config import ModelConfig
from tests.helpers.ranks import init_ranks, run_ranks

forests = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), max_size=4)), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=60)
@given(forest=forests, seed=st.integers(0, 99))
def test_attention_equals_one_dense_mask(forest: list[tuple[int, list[int]]], seed: int) -> None:
    """Roots and branches of all lengths, so that prefixes and responses are padded together."""
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


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("parallel", "processes"),
    [(ParallelConfig(), 1), (ParallelConfig(tp=2, sp=True), 2), (ParallelConfig(pp=2, vp=2), 2)],
    ids=["one process", "tp2 sp", "pp2 vp2"],
)
def test_shared_prompts_train_like_separate_prompts(
    tiny_hf: Path, parallel: ParallelConfig, processes: int
) -> None:
    results = run_ranks(_shared_and_separate, processes, str(tiny_hf), parallel)
    # only the order of sums differs: rounding of fp32 is some 1e-6 here, a wrong mask or position over 1e-2
    assert results[-1].logprob_gap < 2e-4  # on the last stage
    for result in results:
        assert result.grad_gap < 1e-4
        assert result.num_tokens[0] < 0.6 * result.num_tokens[1]


def test_context_parallelism_refuses_shared_prompts() -> None:
    from megatron_omr.model.attention import PackedSequences

    cu_seqlens = torch.tensor([0, 8, 12], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"parallel\.cp=2"):
        PackedSequences.create(cu_seqlens, cp_size=2, parents=torch.tensor([-1, 0]))


class Comparison(NamedTuple):
    """The same responses with a shared prompt and with separate prompts, on one rank."""

    logprob_gap: float  # largest difference
    grad_gap: float  # largest difference of any gradient, relative to the largest gradient
    num_tokens: list[int]


def _shared_and_separate(folder: str, parallel: ParallelConfig) -> Comparison:
    from megatron_omr.config import OptimConfig
    from megatron_omr.oracle import draw_example
    from megatron_omr.train.losses import sft_loss
    from megatron_omr.train.step import MicroBatch, forward_logprobs, train_step
    from megatron_omr.train.trainer import build_trainer

    ranks, model = init_ranks(parallel), ModelConfig.from_hf(folder)
    generator = torch.Generator().manual_seed(3)
    trees, separate = [], []
    for number, images in enumerate((1, 0, 2)):
        drawn = draw_example(model, str(number), images, generator)
        prompt = Example(
            id=drawn.id,
            input_ids=torch.cat([drawn.input_ids, torch.arange(40, 46)]),  # some text after the images
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
        responses = {
            f"{number}/{k}": torch.randint(30, 90, (k + 1,), generator=generator).tolist() for k in range(4)
        }
        tree = share_prompt(
            prompt, responses, image_token_id=model.image_token_id, multiple=parallel.sequence_multiple
        )
        assert tree is not None
        trees.append(tree)
        separate += [respond(prompt, ids, id=name) for name, ids in responses.items()]
    optim = OptimConfig(lr=1e-3)
    trainer = build_trainer(folder, parallel, ranks, optim, precision="fp32", steps=9)
    multiples = {"multiple": parallel.sequence_multiple, "pack_multiple": parallel.pack_multiple()}
    packs = [merge(items, **multiples, pad_token_id=0) for items in (trees, separate)]
    found = [forward_logprobs(trainer, [pack]) for pack in packs]
    by_id = [_by_id(pack, got[0]) if got else {} for pack, got in zip(packs, found, strict=True)]
    assert by_id[0].keys() == by_id[1].keys()
    gap = max((float((by_id[0][i] - by_id[1][i]).abs().max()) for i in by_id[0]), default=0.0)
    grads = []
    for pack in packs:
        trainer = build_trainer(folder, parallel, ranks, optim, precision="fp32", steps=9)
        step = MicroBatch(packed=pack, loss=sft_loss)
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
