"""Rewards from the checker's verdicts."""

from __future__ import annotations

import pytest

from data_pipeline.verify.check import Verdict
from launch.recipes.eval import EVAL_RECIPES
from launch.recipes.rl import RL_RECIPES
from rl.rewards.compute import compute_reward
from rl.rewards.config import RewardConfig


@pytest.mark.parametrize(
    ("accuracy", "form", "total"), [(1, 1, 1.0), (1, 0.8, 0.98), (0, 1, 0.1), (1, 0, 0.9), (0, 0, 0)]
)
def test_published_weights(accuracy, form, total):
    verdict = Verdict(accuracy=accuracy, format=form, extracted="7", decided_by="exact")
    scored = compute_reward(verdict, RewardConfig())
    assert scored.total == pytest.approx(total)
    assert scored.verdict == verdict


def test_weights_come_from_the_config():
    verdict = Verdict(accuracy=1, format=0.8, extracted="7", decided_by="exact")
    assert compute_reward(
        verdict, RewardConfig(weights=(("accuracy", 0.5), ("format", 0.5)))
    ).total == pytest.approx(0.9)


def test_the_published_recipes_keep_the_published_rules_and_ours_are_the_default():
    assert RewardConfig().checker.mode == "strict"
    assert (
        RL_RECIPES["demo"]().reward.checker.mode == EVAL_RECIPES["demo"]().reward.checker.mode == "released"
    )
    for name in ("openmmreasoner_gspo", "openmmreasoner_grpo"):
        assert RL_RECIPES[name]().reward.checker.mode == "released"
    assert EVAL_RECIPES["qwen2_5_vl_7b_greedy"]().reward.checker.mode == "released"
