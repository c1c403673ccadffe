"""Rewards of responses: a weighted sum of the parts of the answer checker's verdict.

A further part (length, a judge) is another field of Verdict, another weight and another term here.
"""

from __future__ import annotations

from data_pipeline.verify.check import Verdict
from rl.rewards.config import RewardConfig
from rl.types import Reward


def compute_reward(verdict: Verdict, config: RewardConfig) -> Reward:
    """Returns the reward of one checked response."""
    parts = {"accuracy": verdict.accuracy, "format": verdict.format}
    total = sum(weight * parts[name] for name, weight in config.weights)
    return Reward(total=total, verdict=verdict)
