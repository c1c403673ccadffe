"""Advantages from the rewards of a group, and which groups have a signal. Legend: G rollouts of one prompt.

All are distances from what the group did on average: they say which of its responses to make more likely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rl.algorithms.config import AdvantageName
from rl.types import Group, Prompt, Reward, Solution

STD_EPS = 1e-6
MIN_TASK_STD = 1e-3
MAX_TASK_ADVANTAGE = 5.0


def compute_advantages(rewards_G: Tensor, name: AdvantageName = "zscore", *, task_std: float = 1.0) -> Tensor:
    """Returns the advantage of each response, [G] -> [G].

    A group of one has nothing to compare with and keeps its reward; an empty one stays empty. A group of equal
    rewards gets exact zeros: rounding gives them a tiny spread, and dividing by it would give large advantages.

    Args:
        task_std: of the rewards of the prompt's task, for task_scale.
    """
    if rewards_G.numel() <= 1:
        return rewards_G.clone()
    if (rewards_G == rewards_G[0]).all():
        return torch.zeros_like(rewards_G)
    if name == "task_scale":
        return scale_by_task(rewards_G, task_std)
    return ADVANTAGES[name](rewards_G)


def zscore(rewards_G: Tensor) -> Tensor:
    """Returns (R - mean) / (std + 1e-6), std with G - 1: GRPO (arXiv 2402.03300) as in verl and the released recipe."""
    return (rewards_G - rewards_G.mean()) / (rewards_G.std() + STD_EPS)


def center(rewards_G: Tensor) -> Tensor:
    """Returns R - mean: Dr. GRPO (arXiv 2503.20783), so that very easy and very hard prompts weigh no more."""
    return rewards_G - rewards_G.mean()


def leave_one_out(rewards_G: Tensor) -> Tensor:
    """Returns R_i - mean of the others = G / (G - 1) (R_i - mean): RLOO (arXiv 2402.14740), an unbiased baseline."""
    return (rewards_G - rewards_G.mean()) * (rewards_G.numel() / (rewards_G.numel() - 1))


def scale_by_task(rewards_G: Tensor, task_std: float) -> Tensor:
    """Returns (R - mean) / (task_std + 1e-6): EMA-GRPO (OneThinker, arXiv 2512.03043, section 3.3).

    As in its released code, a group with an advantage beyond 5 takes its own std instead (that with G).
    """
    centered_G = rewards_G - rewards_G.mean()
    scaled_G = centered_G / (task_std + STD_EPS)
    if scaled_G.abs().max() <= MAX_TASK_ADVANTAGE:
        return scaled_G
    return centered_G / (rewards_G.std(correction=0) + STD_EPS)


ADVANTAGES: dict[AdvantageName, Callable[[Tensor], Tensor]] = {
    "zscore": zscore,
    "mean": center,
    "leave_one_out": leave_one_out,
}
"""Those of the group's rewards alone."""


class TaskScale:
    """The running standard deviation of each task's rewards (OneThinker, arXiv 2512.03043).

    With m the mean of rewards and q that of their squares, over a step's responses to prompts of the task:
    M <- d M + (1 - d) m,  Q <- d Q + (1 - d) q,  std = sqrt(Q - M^2), at least 1e-3; the task's first step starts them.
    A prompt's task is its source, or its kind where it has none.
    """

    def __init__(self, decay: float, moments: Mapping[str, Sequence[float]] | None = None) -> None:
        """Goes on from `moments`, what state_dict returned."""
        self._decay = decay
        self._moments = {task: (mean, square) for task, (mean, square) in (moments or {}).items()}

    def update(self, groups: Sequence[Group]) -> None:
        """Counts the rewards of one step's new groups; before their advantages, as in the released code."""
        by_task: dict[str, list[float]] = {}
        for group in groups:
            rewards = by_task.setdefault(_task(group.prompt), [])
            rewards += [reward.total for reward in group.rewards]
        for task, rewards in by_task.items():
            if not rewards:
                continue
            x = torch.tensor(rewards, dtype=torch.float64)
            mean, square = float(x.mean()), float(x.square().mean())
            if task in self._moments:
                d, (old_mean, old_square) = self._decay, self._moments[task]
                mean, square = d * old_mean + (1 - d) * mean, d * old_square + (1 - d) * square
            self._moments[task] = (mean, square)

    def std(self, prompt: Prompt) -> float:
        """Returns the standard deviation of the prompt's task; 1 for a task without rewards so far."""
        if (moments := self._moments.get(_task(prompt))) is None:
            return 1.0
        mean, square = moments
        return max(max(square - mean * mean, 0.0) ** 0.5, MIN_TASK_STD)

    def state_dict(self) -> dict[str, list[float]]:
        """Returns what a checkpoint has to keep, as JSON holds it: the moments of each task."""
        return {task: list(moments) for task, moments in self._moments.items()}


def has_signal(rewards: Sequence[Reward], solution: Solution | None = None) -> bool:
    """Returns True if a group's responses differ in accuracy; a group of one always has a signal.

    A solution is one of them, unless it has the rollouts' mean.

    The total is not compared: a group that agrees on accuracy and differs in format only would be normalised
    to full-size advantages for its format.
    """
    accuracies = {reward.verdict.accuracy for reward in rewards}
    if solution is None:
        return len(rewards) == 1 or len(accuracies) > 1
    return len(accuracies if solution.is_smoothed else accuracies | {solution.accuracy}) > 1


def _task(prompt: Prompt) -> str:
    return prompt.source or prompt.kind
