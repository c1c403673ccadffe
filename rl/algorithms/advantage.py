"""Rewards of a group of answers -> advantages (pure). Legend: G answers to one prompt."""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPS = 1e-6


def group_advantages(rewards_G: Tensor) -> Tensor:
    """How much better each answer is than its group, in standard deviations: [G] -> [G].

    A group of one has nothing to compare with and keeps its reward. A group of equal rewards gets exact
    zeros: rounding gives them a tiny spread, and dividing by it would make much of nothing.
    """
    if rewards_G.numel() == 1:
        return rewards_G.clone()
    if (rewards_G == rewards_G[0]).all():
        return torch.zeros_like(rewards_G)
    return (rewards_G - rewards_G.mean()) / (rewards_G.std() + STD_EPS)
