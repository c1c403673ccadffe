"""Metrics of rewards: the mean of each part, and what was not decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rl.types import Reward


def mean_parts(rewards: Sequence[Reward]) -> dict[str, float]:
    """Returns the mean of each part."""
    names = rewards[0].parts if rewards else ()
    return {name: float(np.mean([reward.parts[name] for reward in rewards])) for name in names}


def compute_reward_metrics(rewards: Sequence[Reward]) -> dict[str, float]:
    """Returns the metrics of at least one reward.

    reward_accuracy is how right responses are, by reward.correct_by; reward_NAME the mean of a part before its weight;
    reward_errors the number of responses on which a function failed or the checker crashed, and reward_errors_NAME
    those of a function.
    """
    verdicts = [reward.verdict for reward in rewards]
    errors = Counter(name for reward in rewards for name in reward.errors)
    crashed = sum(bool(r.errors) or r.verdict.decided_by == "error" for r in rewards)
    return {
        "reward": float(np.mean([r.total for r in rewards])),
        **{f"reward_{name}": value for name, value in mean_parts(rewards).items()},
        "reward_accuracy": float(np.mean([v.accuracy for v in verdicts])),
        "reward_format": float(np.mean([v.format for v in verdicts])),
        "reward_timeouts": sum(v.decided_by == "timeout" for v in verdicts),
        "reward_errors": crashed,
        **{f"reward_errors_{name}": count for name, count in sorted(errors.items())},
        **count_judged(rewards),
    }


def count_judged(rewards: Sequence[Reward]) -> dict[str, float]:
    """Returns what the judge did; nothing where there is none.

    judge_failures are responses on which it gave no clear verdict: they count as wrong, but may be right.
    """
    if all(reward.judged == "off" for reward in rewards):
        return {}
    decided = Counter(reward.verdict.decided_by for reward in rewards)
    return {
        "judge_asked": sum(reward.judged == "asked" for reward in rewards),
        "judge_cached": sum(reward.judged == "cached" for reward in rewards),
        "judge_right": decided["judge"],
        "judge_failures": decided["judge_failed"],
    }
