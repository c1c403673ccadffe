"""Group advantages against verl's and by hand, the running scale of tasks, and the group filter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.algorithms.advantage import TaskScale, compute_advantages, has_signal
from rl.algorithms.config import AlgorithmConfig
from rl.groups import assign_advantages
from rl.types import Group
from tests.helpers.groups import make_group, make_prompt, make_reward

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "advantage.json").read_text())
NAMES = ["zscore", "mean", "leave_one_out", "task_scale"]
every_advantage = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("group", GOLDEN["groups"], ids=lambda group: str(group["rewards"]))
def test_zscore_equals_verl(group):
    rewards_G = torch.tensor(group["rewards"], dtype=torch.float64)
    expected_G = torch.tensor(group["advantages"], dtype=torch.float64)
    torch.testing.assert_close(compute_advantages(rewards_G), expected_G, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zscore", [1.5, -0.5, -0.5, -0.5]),
        ("mean", [0.75, -0.25, -0.25, -0.25]),
        ("leave_one_out", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("task_scale", [1.5, -0.5, -0.5, -0.5]),
    ],
)
def test_values_by_hand(name, expected):
    advantages_G = compute_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), name, task_std=0.5)
    assert advantages_G.tolist() == pytest.approx(expected, rel=1e-5)


@every_advantage
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.98, 1.0])
def test_equal_rewards_give_exact_zeros(name, reward):
    # the mean of 0.98 is not 0.98 in float32: dividing that difference by the spread would give 0.05
    for size in (2, 3, 7, 16):
        rewards_G = torch.full((size,), reward)
        assert compute_advantages(rewards_G, name, task_std=1e-3).tolist() == [0.0] * size


@every_advantage
def test_single_response_keeps_its_reward_an_empty_group_stays_empty_and_inputs_are_untouched(name):
    rewards_G = torch.tensor([0.7])
    compute_advantages(rewards_G, name, task_std=0.1).add_(1)
    assert rewards_G.tolist() == pytest.approx([0.7])
    assert compute_advantages(torch.tensor([]), name).tolist() == []


@every_advantage
def test_advantages_add_up_to_nothing_and_follow_the_rewards(name):
    rewards_G = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advantages_G = compute_advantages(rewards_G, name, task_std=0.3)
    assert float(advantages_G.sum()) == pytest.approx(0, abs=1e-12)
    assert advantages_G.argsort().equal(rewards_G.argsort())
    shifted_G = compute_advantages(rewards_G + 5, name, task_std=0.3)
    torch.testing.assert_close(shifted_G, advantages_G)


def test_leave_one_out_is_the_distance_from_the_others_mean():
    rewards = [0.9, 0.1, 1.0, 0.1, 0.0]
    advantages = compute_advantages(torch.tensor(rewards, dtype=torch.float64), "leave_one_out").tolist()
    for i, advantage in enumerate(advantages):
        others = rewards[:i] + rewards[i + 1 :]
        assert advantage == pytest.approx(rewards[i] - sum(others) / len(others))


def test_task_scale_falls_back_to_the_group_where_the_task_hardly_varies():
    rewards_G = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert compute_advantages(rewards_G, "task_scale", task_std=0.15).max() == pytest.approx(5.0, rel=1e-5)
    fallen_back_G = compute_advantages(rewards_G, "task_scale", task_std=0.14)
    assert fallen_back_G.tolist() == pytest.approx([3**0.5] + [-(3**-0.5)] * 3, rel=1e-5)  # std with G


def grouped(source: str, accuracies: list[float], *, kind: str = "") -> Group:
    return make_group(replace(make_prompt(kind=kind), source=source), accuracies)


def test_running_scale_is_that_of_the_moments_by_task():
    scale = TaskScale(0.9)
    easy, hard = grouped("easy", [1, 1, 1, 0]), grouped("hard", [0, 0, 0, 0], kind="sum")
    by_kind = grouped("", [1, 0], kind="sum")
    assert scale.std(easy.prompt) == 1  # nothing seen
    scale.update([easy, hard, grouped("easy", [0, 0, 0, 0]), by_kind])
    assert scale.std(easy.prompt) == pytest.approx(0.9 * (3 / 8 * 5 / 8) ** 0.5)  # rewards 1 and 0.1
    assert scale.std(hard.prompt) == 1e-3
    assert scale.std(by_kind.prompt) == pytest.approx(0.45)
    before = scale.state_dict()
    scale.update([grouped("easy", [1, 0])])
    means = 0.9 * (3 * 1 + 5 * 0.1) / 8 + 0.1 * 0.55
    squares = 0.9 * (3 * 1 + 5 * 0.01) / 8 + 0.1 * 0.505
    assert scale.std(easy.prompt) == pytest.approx((squares - means**2) ** 0.5)
    assert {task: scale.state_dict()[task] for task in ("hard", "sum")} == {
        task: before[task] for task in ("hard", "sum")
    }


def test_running_scale_goes_on_from_its_state_to_the_bit():
    steps = [
        [grouped("a", [1, 0, 0]), grouped("b", [1, 1, 0])],
        [grouped("b", [0, 1, 1, 1])],
        [grouped("a", [1, 0])],
    ]
    whole = TaskScale(0.99)
    for groups in steps:
        whole.update(groups)
    half = TaskScale(0.99)
    half.update(steps[0])
    resumed = TaskScale(0.99, json.loads(json.dumps(half.state_dict())))
    for groups in steps[1:]:
        resumed.update(groups)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (AlgorithmConfig(), "zscore"),
        (AlgorithmConfig(name="dr_grpo"), "mean"),
        (AlgorithmConfig(name="dr_grpo", advantage="leave_one_out"), "leave_one_out"),
        (AlgorithmConfig(name="grpo", advantage="task_scale"), "task_scale"),
    ],
)
def test_rollouts_get_the_configured_advantage(algorithm, expected):
    group, scale = grouped("a", [1, 0, 0, 1, 0]), TaskScale(0.5)
    scale.update([group, grouped("a", [0, 0, 0])])
    rewards_G = torch.tensor([reward.total for reward in group.rewards])
    expected_G = compute_advantages(rewards_G, expected, task_std=scale.std(group.prompt))
    assert [r.advantage for r in assign_advantages(group, algorithm, scale)] == expected_G.tolist()


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ([(1, 1), (0, 1)], True),
        ([(1, 1), (1, 1)], False),
        ([(0, 1), (0, 0)], False),  # differs in format only
        ([(1, 1)], True),
    ],
)
def test_signal_is_in_the_accuracy(group, expected):
    assert has_signal([make_reward(*pair) for pair in group]) is expected
