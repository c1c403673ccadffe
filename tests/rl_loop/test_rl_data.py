"""Between answers and the trainer's micro-batches: prompts, groups, packing. No engine, no trainer."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Example, SampleRef
from rl.algorithms.policy_loss import policy_loss
from rl.config import AlgorithmConfig
from rl.groups import gallery_row, kept_groups, minibatches, rollout_metrics, train_rollouts
from rl.pack import PackRules, build_batches, split_by_rank
from rl.prompts import PromptStream, read_prompts
from rl.types import Group, RewardParts, Rollout, TrainRollout

IMAGE = ImageConfig(min_pixels=784)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "train"
    write_shards(digit_samples("train", 7, seed=5, cell=28), folder, ShardConfig(samples_per_shard=3))
    return folder


def group(shards: Path, number: int, accuracies: list[float], length: int = 3) -> Group:
    rollouts = tuple(
        Rollout(
            token_ids=tuple(range(10, 10 + length + i)),
            logprobs=tuple(-0.1 * (k + 1) for k in range(length + i)),
            text="",
            finish_reason="stop",
            policy_version=4,
        )
        for i in range(len(accuracies))
    )
    rewards = tuple(RewardParts(total=0.9 * a + 0.1, accuracy=a, format=1.0) for a in accuracies)
    return Group(prompt=read_prompts(shards, image=IMAGE)[number], rollouts=rollouts, rewards=rewards)


def test_every_prompt_is_asked_once_an_epoch_and_epochs_differ(shards: Path) -> None:
    stream = PromptStream(shards, seed=1, image=IMAGE)
    epochs = [[p.ref.id for p in stream.take(7)] for _ in range(3)]
    assert all(len(set(epoch)) == 7 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_cursor_resumes_in_the_middle_of_an_epoch(shards: Path) -> None:
    stream = PromptStream(shards, seed=1, image=IMAGE)
    stream.take(10)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = [p.ref.id for p in stream.take(9)]
    resumed = PromptStream(shards, seed=1, image=IMAGE)
    resumed.load_state_dict(state)
    assert [p.ref.id for p in resumed.take(9)] == expected


def test_a_cursor_of_other_prompts_is_refused(shards: Path) -> None:
    state = PromptStream(shards, seed=1, image=IMAGE).state_dict()
    with pytest.raises(ValueError, match="seed=1, this run has 2"):
        PromptStream(shards, seed=2, image=IMAGE).load_state_dict(state)


def test_groups_without_signal_are_dropped_unless_asked_for(shards: Path) -> None:
    groups = [group(shards, 0, [1, 1, 1]), group(shards, 1, [1, 0, 0])]
    assert kept_groups(AlgorithmConfig(), groups) == groups[1:]
    assert kept_groups(AlgorithmConfig(drop_equal_groups=False), groups) == groups
    metrics = rollout_metrics(groups, groups[1:])
    assert metrics["reward_accuracy"] == pytest.approx(4 / 6)
    assert (metrics["groups_kept"], metrics["groups_total"], metrics["policy_version"]) == (1, 2, 4)


def test_minibatches_keep_groups_whole(shards: Path) -> None:
    groups = [group(shards, i, [1, 0]) for i in range(5)]
    parts = minibatches(groups, 2)
    assert [len(part) for part in parts] == [6, 4]
    assert [r.ref.id for part in parts for r in part[::2]] == [g.prompt.ref.id for g in groups]
    assert minibatches(groups[:1], 4) == [train_rollouts(groups[0])]


def test_ranks_share_the_rollouts_and_none_stays_idle(shards: Path) -> None:
    rollouts = [r for i in range(5) for r in train_rollouts(group(shards, i, [1, 0, 1], length=2 + i))]
    shares = split_by_rank(rollouts, 2, whole_groups=False)
    assert Counter(id(r) for share in shares for r in share) == Counter(map(id, rollouts))
    tokens = [sum(len(r.token_ids) for r in share) for share in shares]
    assert abs(tokens[0] - tokens[1]) <= max(len(r.token_ids) for r in rollouts)
    assert split_by_rank(rollouts[:1], 3, whole_groups=False) == [rollouts[:1], [], []]
    whole = split_by_rank(rollouts, 2, whole_groups=True)
    assert Counter(id(r) for share in whole for r in share) == Counter(map(id, rollouts))
    assert not {r.ref for r in whole[0]} & {r.ref for r in whole[1]}
    assert all(whole)


def test_a_rank_without_rollouts_gets_a_batch_that_counts_for_nothing(shards: Path) -> None:
    rules = PackRules(pack_length=64, multiple=4, pad_token_id=0, image_token_id=5, share_prompts=True)
    (batch,) = build_batches([], encode_nothing, rules)
    output = policy_loss(AlgorithmConfig())(torch.zeros(4, requires_grad=True), batch)
    assert (output.loss_sum.item(), output.count.item()) == (0, 0)


def encode_nothing(ref: SampleRef) -> Example:
    raise AssertionError("there is nothing to encode")


def test_a_bad_prompt_is_skipped_and_counted(tmp_path: Path) -> None:
    good = list(digit_samples("train", 4, seed=5))
    write_shards([good[0], replace(good[1], images=(b"no image",)), *good[2:]], tmp_path / "s")
    stream = PromptStream(tmp_path / "s", seed=1, image=IMAGE)
    assert {p.ref.id for p in stream.take(3)} == {s.id for s in good} - {good[1].id}
    assert stream.num_skipped == 1


@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("pack_length", [1_200, 380])
def test_each_response_token_gets_its_rollouts_numbers(
    shards: Path, tiny_hf: Path, share_prompts: bool, pack_length: int
) -> None:
    encoder = ChatEncoder.from_hf(tiny_hf, IMAGE)
    answers = [
        (20, 21, 2),
        (30, 2),
        (40, 41, 42, 2),
        (50, 2),
        (60, 61, 62, 63, 64, 65, 66, 67, 68, 2),
        (70, 2),
    ]
    refs = [p.ref for p in read_prompts(shards, image=IMAGE)][:2]
    rollouts = [
        TrainRollout(
            ref=refs[k % 2], token_ids=ids, logprobs=tuple(-float(t) for t in ids), advantage=k + 1.0
        )
        for k, ids in enumerate(answers)
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
        for name, start, end in zip(packed.ids, bounds[:-1], bounds[1:], strict=True):
            assert (end - start) % 4 == 0
            if not name:
                assert not learned[start:end].any()
                continue
            chosen = learned[start:end]
            seen[int(name)] = (
                packed.labels[start:end][chosen].tolist(),
                set(batch.advantages_T[start:end][chosen].tolist()),
            )
    assert seen == {k: (list(r.token_ids), {r.advantage}) for k, r in enumerate(rollouts)}


def test_gallery_rows_hold_references_and_no_image_bytes(shards: Path) -> None:
    row = gallery_row(shards, group(shards, 2, [1, 0]))
    text = json.dumps(row)
    assert row["shard"] == "shard-000000-0000.tar" and "<image>" not in row["question"] and len(text) < 2_000
    assert [r["accuracy"] for r in row["rollouts"]] == [1, 0]
