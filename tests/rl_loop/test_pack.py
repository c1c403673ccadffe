"""Rollouts on their way to the trainer: the split over ranks, and packed micro-batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.cost import CostModel
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Example, SampleRef
from rl.algorithms.config import AlgorithmConfig
from rl.algorithms.policy_loss import build_policy_loss
from rl.pack import PackRules, attach_rollouts, pack_rollouts, split_by_rank
from rl.prompts.stream import read_prompts
from rl.types import RolloutBatch, TrainRollout
from tests.helpers.groups import make_group, make_prompt, train_rollouts

IMAGE = ImageConfig(min_pixels=784)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "train"
    write_shards(digit_samples("train", 7, seed=5, cell=28), folder)
    return folder


def build_batches(rollouts: list[TrainRollout], encode_prompt, rules: PackRules) -> list[RolloutBatch]:
    return attach_rollouts(pack_rollouts(rollouts, encode_prompt, rules), rollouts, version=4)


def test_ranks_share_the_rollouts_and_none_stays_idle() -> None:
    groups = [make_group(make_prompt(i), [1, 0, 1], lengths=range(2 + i, 5 + i)) for i in range(5)]
    rollouts = [rollout for group in groups for rollout in train_rollouts(group)]
    shares = split_by_rank(rollouts, 2, whole_groups=False)
    assert Counter(id(r) for share in shares for r in share) == Counter(map(id, rollouts))
    tokens = [sum(len(r.token_ids) for r in share) for share in shares]
    assert abs(tokens[0] - tokens[1]) <= max(len(r.token_ids) for r in rollouts)
    assert split_by_rank(rollouts[:1], 3, whole_groups=False) == [rollouts[:1], [], []]
    whole = split_by_rank(rollouts, 2, whole_groups=True)
    assert Counter(id(r) for share in whole for r in share) == Counter(map(id, rollouts))
    assert not {r.ref for r in whole[0]} & {r.ref for r in whole[1]}
    assert all(whole)


def test_ranks_are_balanced_by_tokens_not_by_rollouts() -> None:
    rollouts = train_rollouts(make_group(make_prompt(), [1, 0, 0, 0], lengths=[30, 10, 10, 10]))
    assert split_by_rank(rollouts, 2, whole_groups=False) == [rollouts[:1], rollouts[1:]]


def test_ranks_are_balanced_by_cost_where_prompts_differ() -> None:
    """A prompt with a large image is worth its four responses and those of all others."""
    dear, *cheap = (
        [
            replace(rollout, prompt_tokens=50, prompt_patches=patches)
            for rollout in train_rollouts(make_group(make_prompt(n), [1, 0, 0, 0], lengths=[10] * 4))
        ]
        for n, patches in enumerate([(1_000,), (8,), (), (8, 8)])
    )
    rollouts = [*dear, *(rollout for group in cheap for rollout in group)]
    cost = CostModel(token=1.0, token_pair=0.01, patch=1.0)
    shares = split_by_rank(rollouts, 2, whole_groups=True, cost=cost)
    assert sorted(map(len, shares)) == [4, 12]
    each = split_by_rank(rollouts, 4, whole_groups=False, cost=cost)
    assert [sum(r in dear for r in share) for share in each] == [1, 1, 1, 1]


def test_rank_without_rollouts_gets_a_batch_that_counts_for_nothing() -> None:
    rules = PackRules(pack_length=64, multiple=4, pad_token_id=0, image_token_id=5, share_prompts=True)
    (batch,) = build_batches([], encode_nothing, rules)
    output = build_policy_loss(AlgorithmConfig(), max_tokens=8)(torch.zeros(4, requires_grad=True), batch)
    assert (output.loss_sum.item(), output.count.item()) == (0, 0)


def encode_nothing(ref: SampleRef) -> Example:
    raise AssertionError("there is nothing to encode")


@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("pack_length", [1_200, 380])
def test_response_tokens_get_the_numbers_of_their_rollout(
    shards: Path, tiny_hf: Path, share_prompts: bool, pack_length: int
) -> None:
    encoder = ChatEncoder.from_hf(tiny_hf, IMAGE)
    responses = [
        (20, 21, 2),
        (30, 2),
        (40, 41, 42, 2),
        (50, 2),
        (60, 61, 62, 63, 64, 65, 66, 67, 68, 2),
        (70, 2),
    ]
    refs = [p.ref for p, _ in read_prompts(shards, encoder.limits)][:2]
    prompt_ids = [encoder.encode_prompt(read_sample(shards, ref)).input_ids.tolist() for ref in refs]
    rollouts = [
        TrainRollout(
            ref=refs[k % 2],
            token_ids=np.array(ids, np.int32),
            logprobs=-np.array(ids, np.float32),
            versions=((4, len(ids)),),
            advantage=k + 1.0,
            routed_experts=None if k == 4 else mark_tokens(prompt_ids[k % 2], ids),
        )
        for k, ids in enumerate(responses)
    ]
    rules = PackRules(
        pack_length=pack_length,
        multiple=4,
        pad_token_id=encoder.pad_token_id,
        image_token_id=encoder.image_token_id,
        share_prompts=share_prompts,
    )
    batches = build_batches(rollouts, lambda ref: encoder.encode_prompt(read_sample(shards, ref)), rules)
    prompts = sum(name == "" for batch in batches for name in batch.packed.ids)
    assert (prompts > 0) == share_prompts
    if share_prompts:
        alone = build_batches(
            rollouts,
            lambda r: encoder.encode_prompt(read_sample(shards, r)),
            replace(rules, share_prompts=False),
        )
        assert sum(b.packed.num_tokens for b in batches) < sum(b.packed.num_tokens for b in alone)
    seen = {}
    for batch in batches:
        packed, learned = batch.packed, batch.packed.loss_mask.bool()
        assert torch.equal(batch.advantages_T != 0, learned)
        # the fixture gave each token its own id as (negative) logprob
        assert torch.equal(batch.rollout_logprobs_T[learned], -packed.labels[learned].float())
        bounds = packed.cu_seqlens.tolist()
        routed = packed.routed_experts
        experts = torch.full_like(packed.input_ids, -1) if routed is None else routed[:, 1, 0]
        assert torch.equal(experts[experts >= 0], packed.input_ids[experts >= 0])
        for name, start, end in zip(packed.ids, bounds[:-1], bounds[1:], strict=True):
            assert (end - start) % 4 == 0
            if not name:
                assert not learned[start:end].any() and (experts[start:end] >= 0).all()
                continue
            chosen = learned[start:end]
            # all but the last token, which nothing follows, and the pads
            routed_len = 0 if name.endswith("(4)") else int(chosen.nonzero().max()) + 1
            assert ((experts[start:end] >= 0) == (torch.arange(end - start) < routed_len)).all()
            seen[name] = (
                packed.labels[start:end][chosen].tolist(),
                set(batch.advantages_T[start:end][chosen].tolist()),
            )
    expected = {f"{r.ref.id} ({k})": (r.token_ids.tolist(), {r.advantage}) for k, r in enumerate(rollouts)}
    assert seen == expected


def mark_tokens(prompt: list[int], response: tuple[int, ...]) -> np.ndarray:
    """Returns a record of routing in which each token has its own id as an expert of the second of two layers."""
    ids = np.array([*prompt, *response[:-1]], np.uint16)
    return np.stack([0 * ids, ids], axis=1)[:, :, None]


def test_fresh_stale_and_solution_tokens_are_told_apart(shards: Path, tiny_hf: Path) -> None:
    """Stale tokens take the engine's logprobs as old ones; engine and trainer are compared on fresh ones alone."""
    encoder = ChatEncoder.from_hf(tiny_hf, IMAGE)
    refs = [prompt.ref for prompt, _ in read_prompts(shards, encoder.limits)][:2]
    fresh = TrainRollout(
        ref=refs[0],
        token_ids=np.array([20, 21, 2], np.int32),
        logprobs=np.array([-1.0, -2.0, -3.0], np.float32),
        versions=((7, 3),),
        advantage=1.0,
    )
    mixed = replace(fresh, versions=((6, 1), (7, 2)))
    rollouts = [
        fresh,
        replace(fresh, ref=refs[1], versions=((6, 3),)),
        replace(fresh, versions=(), logprobs=None),
        mixed,
    ]
    rules = PackRules(
        pack_length=1_200,
        multiple=4,
        pad_token_id=encoder.pad_token_id,
        image_token_id=encoder.image_token_id,
        share_prompts=True,
    )
    packs = pack_rollouts(rollouts, lambda ref: encoder.encode_prompt(read_sample(shards, ref)), rules)
    (batch,) = attach_rollouts(packs, rollouts, version=7)
    assert batch.fresh_T is not None and batch.stale_T is not None
    marks = {}
    for name, start, end in zip(
        batch.packed.ids, batch.packed.cu_seqlens, batch.packed.cu_seqlens[1:], strict=False
    ):
        learned = batch.packed.loss_mask[start:end].bool()
        parts = (batch.fresh_T, batch.stale_T, batch.rollout_logprobs_T)
        assert not any(part[start:end][~learned].any() for part in parts)
        if name:
            marks[int(name[-2])] = [part[start:end][learned].tolist() for part in parts]
    own = [-1, -2, -3]
    assert marks == {
        0: [[1] * 3, [0] * 3, own],
        1: [[0] * 3, [1] * 3, own],
        2: [[0] * 3] * 3,
        3: [[0, 1, 1], [1, 0, 0], own],
    }

    current_T = torch.full((batch.packed.num_tokens,), -0.5)
    old_T = batch.with_old_logprobs(current_T).old_logprobs_T
    assert old_T is not None
    assert (
        sorted(old_T[batch.stale_T].tolist()) == sorted([*own, -1]) and (old_T[~batch.stale_T] == -0.5).all()
    )
    output = build_policy_loss(AlgorithmConfig(), max_tokens=8)(current_T, batch.with_old_logprobs(current_T))
    assert [float(value) for value in output.metrics["mismatch"]] == [0.5 + 1.5 + 2.5 + 1.5 + 2.5, 5]

    (same,) = attach_rollouts(
        packs, [replace(r, versions=((7, 3),), logprobs=fresh.logprobs) for r in rollouts], 7
    )
    assert same.fresh_T is None and same.stale_T is None
