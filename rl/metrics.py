"""Metrics of a step, computed from its groups, and the files they are written to. No ray, no vllm."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_omr.train.metrics import JsonLines, MetricsLog
from rl.config import RLConfig
from rl.groups import build_row
from rl.rewards.metrics import compute_reward_metrics
from rl.types import Group, TrainRollout

log = logging.getLogger(__name__)

LOGGED_GROUPS = 2
"""Groups of each step that are written to rollouts.jsonl."""
REFLECTION_WORDS = (
    *(
        "re-check",
        "re-evaluate",
        "re-examine",
        "re-think",
        "recheck",
        "reevaluate",
        "reexamine",
        "reevaluation",
    ),
    *("rethink", "check again", "think again", "try again", "verify", "wait", "yet"),
)
"""Words with which a response looks back at itself: those of MAYE (arXiv 2504.02587, code at GAIR-NLP/MAYE). The recipe
logs such a share (0.020 rising to 0.034 in its first 200 steps) without saying which words it counts."""
SHOWN = ("reward", "reward_accuracy", "entropy", "mismatch_mean", "seconds_step")


def compute_metrics(groups: Sequence[Group], seconds: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of one step's responses, over all groups, if any, and the seconds of its phases."""
    if not groups:
        return dict(seconds)
    rewards = [reward for group in groups for reward in group.rewards]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    return {
        **compute_reward_metrics(rewards),
        **measure_groups(groups),
        **measure_lengths(groups),
        **measure_reflection([rollout.response for rollout in rollouts]),
        "policy_version": min(rollout.oldest_version for rollout in rollouts),
        "response_tokens": float(tokens),
        "tokens_per_second": tokens / seconds.get("seconds_generate", seconds["seconds_step"]),
        **seconds,
    }


def measure_staleness(groups: Sequence[Group], version: int) -> dict[str, float]:
    """Returns how many versions the tokens of groups are older than `version`, the weights that learn from them."""
    spans = [span for group in groups for rollout in group.rollouts for span in rollout.versions]
    ages = np.array([version - own for own, _ in spans])
    counts = np.array([count for _, count in spans])
    if not counts.sum():
        return {}
    return {
        "staleness_mean": float((ages * counts).sum() / counts.sum()),
        "staleness_max": float(ages.max()),
        "stale_tokens": float(counts[ages > 0].sum() / counts.sum()),
    }


def list_trained(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns for each group its prompt's id, and the oldest and newest version of its tokens."""
    return [
        {
            "id": group.prompt.ref.id,
            "oldest": min(rollout.oldest_version for rollout in group.rollouts),
            "newest": max(rollout.newest_version for rollout in group.rollouts),
        }
        for group in groups
    ]


def measure_groups(groups: Sequence[Group]) -> dict[str, float]:
    """Returns pass_at_1, 2, 4, ..., and how many groups are all right and all wrong."""
    right = [[reward.verdict.accuracy == 1 for reward in group.rewards] for group in groups]
    sizes = min(len(group) for group in right)
    ks = [2**power for power in range(sizes.bit_length())]
    passes = {
        f"pass_at_{k}": float(np.mean([estimate_pass(len(group), sum(group), k) for group in right]))
        for k in ks
    }
    return {
        **passes,
        "groups_all_right": sum(all(group) for group in right),
        "groups_all_wrong": sum(not any(group) for group in right),
    }


def estimate_pass(n: int, c: int, k: int) -> float:
    """Returns pass@k = 1 - C(n - c, k) / C(n, k): that one of k of n responses is right, where c are.

    Unbiased over which responses were sampled (Chen et al., arXiv 2107.03374, eq. 1).
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def measure_lengths(groups: Sequence[Group]) -> dict[str, float]:
    """Returns lengths of responses in tokens, of right and of wrong ones where there are some, and who was cut off."""
    scored = [pair for group in groups for pair in zip(group.rollouts, group.rewards, strict=True)]
    lengths = np.array([len(rollout.token_ids) for rollout, _ in scored])
    right = np.array([reward.verdict.accuracy == 1 for _, reward in scored])
    by_outcome = {"right": lengths[right], "wrong": lengths[~right]}
    return {
        "response_len_mean": float(lengths.mean()),
        "response_len_p50": float(np.median(lengths)),
        "response_len_p95": float(np.quantile(lengths, 0.95)),
        "response_len_max": float(lengths.max()),
        **{f"response_len_{name}": float(own.mean()) for name, own in by_outcome.items() if len(own)},
        "truncated": float(np.mean([rollout.finish_reason == "length" for rollout, _ in scored])),
    }


def measure_reflection(responses: Sequence[str]) -> dict[str, float]:
    """Returns the share of words that are reflection words, and of responses that hold one; parts of words count."""
    texts = [response.lower() for response in responses]
    counts = [sum(text.count(word) for word in REFLECTION_WORDS) for text in texts]
    words = sum(len(response.split()) for response in responses)
    return {
        "reflection_words": sum(counts) / max(1, words),
        "reflection_responses": float(np.mean([count > 0 for count in counts])),
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
