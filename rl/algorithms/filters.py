"""Which groups of answers are worth training on (pure)."""

from __future__ import annotations

from collections.abc import Sequence

from rl.types import RewardParts


def has_signal(rewards: Sequence[RewardParts]) -> bool:
    """Whether a group's answers differ in accuracy; a single answer keeps its raw reward, so it counts.

    The total would not do: a group that agrees on accuracy and differs in format only would be normalised to
    full-size advantages for its format.
    """
    return len(rewards) == 1 or len({parts.accuracy for parts in rewards}) > 1
