"""Groups of one step: which are kept, mini-batches and records."""

from __future__ import annotations

import json

import pytest

from data_pipeline.types import SampleRef
from data_pipeline.verify.config import CheckerConfig
from data_pipeline.verify.pool import VerifyPool
from rl.algorithms.config import AlgorithmConfig
from rl.groups import (
    build_records,
    build_row,
    score_groups,
    select_groups,
    split_groups,
)
from rl.rewards.config import RewardConfig
from rl.types import AskedResponse
from tests.helpers.groups import make_group, make_prompt, make_rollout, train_rollouts


def test_scores_of_groups_are_in_order() -> None:
    tagged = "<think>a</think><answer>{}</answer>"
    responses = [[tagged.format(7), tagged.format(8)], [], [r"\boxed{7.0}", "7"]]
    asked = [
        (make_prompt(number), [make_rollout(response=response) for response in group])
        for number, group in enumerate(responses)
    ]
    with VerifyPool(CheckerConfig(workers=1)) as pool:
        groups = score_groups(pool, RewardConfig(), asked)
    assert [(group.prompt, list(group.rollouts)) for group in groups] == asked
    rewards = [[reward.total for reward in group.rewards] for group in groups]
    assert rewards == [pytest.approx([1.0, 0.1]), [], pytest.approx([1.0, 0.9])]
    rules = [reward.verdict.decided_by for group in groups for reward in group.rewards]
    assert rules == ["exact", "none", "number", "exact"]


def test_groups_without_signal_are_dropped_unless_asked_for() -> None:
    groups = [make_group(make_prompt(0), [1, 1, 1]), make_group(make_prompt(1), [1, 0, 0])]
    assert select_groups(AlgorithmConfig(), groups) == [1]
    assert select_groups(AlgorithmConfig(drop_equal_groups=False), groups) == [0, 1]


def test_minibatches_keep_groups_whole() -> None:
    groups = [train_rollouts(make_group(make_prompt(i), [1, 0])) for i in range(5)]
    parts = split_groups(groups, 2)
    assert [len(part) for part in parts] == [6, 4]
    assert [rollout for part in parts for rollout in part] == [r for group in groups for r in group]
    assert split_groups(groups[:1], 4) == groups[:1]


def test_row_of_a_group_holds_the_reference_of_its_images_and_scored_responses() -> None:
    group = make_group(make_prompt(3, kind="count"), [1, 0])
    row = json.loads(json.dumps(build_row(group)))
    assert SampleRef(**row["ref"]) == group.prompt.ref
    assert (row["question"], row["policy_version"]) == ("How many?", 4)
    records = [AskedResponse.from_json(json.dumps(record)) for record in row["responses"]]
    assert records == build_records(group)
    assert [(r.id, r.rollout, r.kind, r.answer) for r in records] == [
        ("3", 0, "count", "7"),
        ("3", 1, "count", "7"),
    ]
    assert [(r.accuracy, r.response_len, r.reward) for r in records] == [(1, 3, 1.0), (0, 4, 0.1)]
