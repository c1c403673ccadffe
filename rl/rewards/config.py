"""Config of rewards (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.verify.config import CheckerConfig


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The reward of a response: the weighted sum of named functions of it."""

    weights: tuple[tuple[str, float], ...] = (("accuracy", 0.9), ("format", 0.1))
    """Functions and their weights: accuracy 0.9 format 0.1 is the recipe's reward."""
    checker: CheckerConfig = field(default_factory=CheckerConfig)
