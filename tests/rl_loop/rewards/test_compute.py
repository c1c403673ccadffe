"""Rewards as weighted sums of named parts, and functions that fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.verify.check import Verdict
from launch.recipes.eval import EVAL_RECIPES
from launch.recipes.rl import RL_RECIPES
from rl.rewards.compute import compute_reward
from rl.rewards.config import NAMES, RewardConfig
from rl.rewards.inputs import RewardInput
from rl.rewards.metrics import compute_reward_metrics
from rl.rewards.registry import load_functions
from rl.types import Reward
from tests.helpers.rewards import make_input


def compute(given: RewardInput, config: RewardConfig, **functions: Callable[[RewardInput], object]) -> Reward:
    """Computes a reward in which `functions` take the place of those of the same name; errors are not expected."""
    reported: list[tuple[str, str]] = []
    found = load_functions(config) | functions
    reward = compute_reward(given, found, config, lambda name, error: reported.append((name, error)))  # pyright: ignore
    assert not reported, reported
    return reward


@pytest.mark.parametrize(
    ("accuracy", "form", "total"), [(1, 1, 1.0), (1, 0.8, 0.98), (0, 1, 0.1), (1, 0, 0.9), (0, 0, 0)]
)
def test_published_weights(accuracy: float, form: float, total: float):
    verdict = Verdict(accuracy=accuracy, format=form, extracted="7", decided_by="exact")
    reward = compute(replace(make_input(), verdict=verdict), RewardConfig())
    assert reward.total == pytest.approx(total)
    assert (reward.verdict, reward.parts) == (verdict, {"accuracy": accuracy, "format": form})


def test_weights_come_from_the_config_and_a_weight_of_0_only_logs():
    verdict = Verdict(accuracy=1, format=0.8, extracted="7", decided_by="exact")
    weights = (("accuracy", 0.5), ("format", 0.5), ("overlong", 0.0))
    given = replace(make_input(response_len=100), verdict=verdict)
    reward = compute(given, RewardConfig(weights=weights, overlong_buffer=10))
    assert reward.total == pytest.approx(0.9) and reward.parts["overlong"] == -1.0


def test_every_name_has_its_function():
    config = RewardConfig(weights=tuple((name, 1.0) for name in NAMES))
    assert tuple(load_functions(config)) == NAMES


def test_the_published_recipes_keep_the_published_rules_and_ours_are_the_default():
    assert RewardConfig().checker.mode == "strict"
    for recipe in (*RL_RECIPES.values(), *EVAL_RECIPES.values()):
        assert recipe().reward.checker.mode == "released"
        assert not recipe().reward.use_judge, "as released: the scripts of RL do not switch the judge on"


def raise_key_error(given: RewardInput) -> float:
    return {}["no such key"]


def leave(given: RewardInput) -> float:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (raise_key_error, "KeyError: 'no such key'"),
        (leave, "SystemExit: 0"),
        (lambda given: float("nan"), "not finite"),
        (lambda given: np.float32("inf"), "not finite"),
        (lambda given: None, "returned NoneType instead of a number"),
        (lambda given: "1", "returned str instead of a number"),
    ],
)
def test_function_that_fails_on_a_response_counts_as_0_and_is_named(
    fails: Callable[[RewardInput], object], words: str
):
    config = RewardConfig(weights=(("accuracy", 1.0), ("format", 0.5)))
    reported: list[tuple[str, str]] = []
    functions = load_functions(config) | {"format": fails}
    reward = compute_reward(make_input(), functions, config, lambda *error: reported.append(error))  # pyright: ignore
    assert (reward.total, reward.parts, reward.errors) == (1.0, {"accuracy": 1.0, "format": 0.0}, ("format",))
    ((name, error),) = reported
    assert name == "format" and words in error
    metrics = compute_reward_metrics([reward, compute(make_input("8"), config)])
    assert (metrics["reward_errors"], metrics["reward_errors_format"]) == (1, 1)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(1), True, 3])
def test_any_real_number_is_a_value(value: object):
    reward = compute(make_input(), RewardConfig(), format=lambda given: value)
    assert type(reward.parts["format"]) is float and reward.parts["format"] == value


def test_metrics_are_means_of_each_part_before_its_weight():
    config = RewardConfig(weights=(("accuracy", 1.0), ("overlong", 2.0)), overlong_buffer=10)
    rewards = [
        compute(make_input(response_len=95), config),
        compute(make_input("8", response_len=100), config),
    ]
    metrics = compute_reward_metrics(rewards)
    assert metrics["reward"] == pytest.approx(((1 - 2 * 0.5) + (0 - 2)) / 2)
    assert (metrics["reward_accuracy"], metrics["reward_overlong"]) == (0.5, -0.75)
    assert metrics["reward_format"] == 0.5  # of the checker, though it has no weight
    assert metrics["reward_errors"] == 0 and not any(name.startswith("judge") for name in metrics)


def test_another_function_may_say_what_is_right():
    config = RewardConfig(
        weights=(("point_in_box", 0.5), ("grounded_format", 0.5)), correct_by="point_in_box"
    )
    response = "<think>It is at (12, 30).</think><answer>(12, 30)</answer>"
    reward = compute(make_input(response, "(10, 20, 30, 40)"), config)
    assert reward.total == 1.0
    assert (reward.verdict.accuracy, reward.verdict.decided_by) == (1.0, "point_in_box")
    outside = compute(make_input(response, "(13, 20, 30, 40)"), config)
    assert (outside.total, outside.verdict.accuracy, outside.verdict.extracted) == (0.5, 0.0, "(12, 30)")
