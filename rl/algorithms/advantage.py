"""Advantages from the rewards of a group, and which groups have a signal (pure). Legend: G rollouts of one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.types import Reward

STD_EPS = 1e-6


def compute_advantages(rewards_G: Tensor) -> Tensor:
    """Returns each reward's distance from the group's mean, in standard deviations: [G] -> [G].

    A group of one has nothing to compare with and keeps its reward. A group of equal rewards gets exact
    zeros: rounding gives them a tiny spread, and dividing by it would give large advantages.
    """
    if rewards_G.numel() == 1:
        return rewards_G.clone()
    if (rewards_G == rewards_G[0]).all():
        return torch.zeros_like(rewards_G)
    return (rewards_G - rewards_G.mean()) / (rewards_G.std() + STD_EPS)


def has_signal(rewards: Sequence[Reward]) -> bool:
    """Returns True if a group's responses differ in accuracy; a group of one always has a signal.

    The total is not compared: a group that agrees on accuracy and differs in format only would be normalised
    to full-size advantages for its format.
    """
    return len(rewards) == 1 or len({reward.verdict.accuracy for reward in rewards}) > 1
