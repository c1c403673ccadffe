"""Groups of one step: which are kept, mini-batches and records."""

from __future__ import annotations

import json
from dataclasses import replace

from data_pipeline.types import SampleRef
from rl.algorithms.advantage import TaskScale
from rl.algorithms.config import AlgorithmConfig
from rl.groups import (
    assign_advantages,
    build_records,
    build_row,
    select_groups,
    split_groups,
)
from rl.types import AskedResponse
from tests.helpers.groups import make_group, make_prompt, make_rollout, train_rollouts


def test_groups_without_signal_are_dropped_unless_asked_for() -> None:
    groups = [make_group(make_prompt(0), [1, 1, 1]), make_group(make_prompt(1), [1, 0, 0])]
    assert select_groups(AlgorithmConfig(), groups) == [1]
    assert select_groups(AlgorithmConfig(drop_equal_groups=False), groups) == [0, 1]


def test_truncated_responses_count_in_their_group_and_are_left_out() -> None:
    algorithm = AlgorithmConfig(mask_truncated=True)
    scale = TaskScale(0.99)
    whole = make_group(make_prompt(0), [1, 0, 0])
    cut = replace(
        whole, rollouts=(whole.rollouts[0], make_rollout(9, finish_reason="length"), whole.rollouts[2])
    )
    kept = assign_advantages(cut, algorithm, scale)
    all_three = assign_advantages(cut, AlgorithmConfig(), scale)
    assert [rollout.token_ids.tolist() for rollout in kept] == [[10, 11, 12], [10, 11, 12, 13, 14]]
    assert [rollout.advantage for rollout in kept] == [all_three[0].advantage, all_three[2].advantage]
    all_cut = make_group(make_prompt(1), [1, 0, 0], finish_reason="length")
    assert select_groups(algorithm, [all_cut, cut]) == [1]
    assert select_groups(replace(algorithm, drop_equal_groups=False), [all_cut, cut]) == [1]
    assert select_groups(AlgorithmConfig(), [all_cut, cut]) == [0, 1]


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
    assert [r.parts for r in records] == [{"accuracy": 1, "format": 1}, {"accuracy": 0, "format": 1}]
