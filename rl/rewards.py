"""Rewards of responses: a weighted sum of the parts of the answer checker's verdict.

A further part (length, a judge) is another field of Verdict, another weight and another term here.
"""

from __future__ import annotations

from data_pipeline.verify.check import Verdict
from rl.config import RewardConfig
from rl.types import Reward


def compute_reward(verdict: Verdict, config: RewardConfig) -> Reward:
    """Returns the reward of one checked response."""
    total = config.accuracy_weight * verdict.accuracy + config.format_weight * verdict.format
    return Reward(total=total, verdict=verdict)
