"""Metrics of a step, computed from its groups, and the files they are written to. No ray, no vllm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from megatron_omr.train.metrics import JsonLines, MetricsLog
from rl.config import RLConfig
from rl.groups import build_row
from rl.rewards.metrics import compute_reward_metrics
from rl.types import Group, TrainRollout

log = logging.getLogger(__name__)

LOGGED_GROUPS = 2
"""Groups of each step that are written to rollouts.jsonl."""
SHOWN = ("reward", "reward_accuracy", "entropy", "mismatch_mean", "seconds_step")


def compute_metrics(groups: Sequence[Group], seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of one step's responses, over all groups, if any, and the seconds of its phases."""
    if not groups:
        return dict(seconds)
    rewards = [reward for group in groups for reward in group.rewards]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
    return {
        **compute_reward_metrics(rewards),
        "response_len_mean": float(lengths.mean()),
        "response_len_max": float(lengths.max()),
        "truncated": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "policy_version": min(rollout.policy_version for rollout in rollouts),
        "response_tokens": float(lengths.sum()),
        "tokens_per_second": float(lengths.sum()) / seconds["seconds_generate"],
        **seconds,
    }


class StepLog:
    """Writes RUN/metrics.jsonl and, of a few groups of each step, RUN/rollouts.jsonl; shows a progress bar."""

    def __init__(self, config: RLConfig, first_step: int) -> None:
        run = Path(config.run)
        self._metrics = MetricsLog(run, config.log, steps=config.steps, first_step=first_step, name="rl")
        self._rows = JsonLines(run / "rollouts.jsonl", first_step=first_step)

    def write(
        self, step: int, groups: Sequence[Group], seconds: Mapping[str, float], others: dict[str, float]
    ) -> None:
        """Records the metrics of a step: of its groups, the seconds of its phases and others; and its first groups."""
        self._metrics.write(step, compute_metrics(groups, seconds) | others, show=SHOWN)
        for group in groups[:LOGGED_GROUPS]:
            self._rows.write(step, build_row(group))

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._rows.close()


class SignalWatch:
    """Warns at a checkpoint when nothing was learned since the one before."""

    def __init__(self) -> None:
        self._has_learned = False
        self._accuracies: list[float] = []  # mean of each group

    def add(self, groups: Sequence[Group], kept: Sequence[Sequence[TrainRollout]]) -> None:
        """Counts one step's groups, and those that were learned from."""
        self._has_learned |= any(rollout.advantage != 0 for group in kept for rollout in group)
        self._accuracies += [float(np.mean([r.verdict.accuracy for r in g.rewards])) for g in groups]

    def warn(self, step: int) -> None:
        """Logs that the checkpoint of `step` steps holds nothing new, and why, if so; counts anew."""
        total, right, wrong = len(self._accuracies), self._accuracies.count(1), self._accuracies.count(0)
        if not self._has_learned:
            log.warning(
                f"step {step}: nothing was learned since the last checkpoint: the responses to each of {total} "
                f"prompts had equal accuracy ({right} all right, {wrong} all wrong); use prompts of another "
                "difficulty, or raise sampling.n or prompts_per_step"
            )
        self._has_learned, self._accuracies = False, []
