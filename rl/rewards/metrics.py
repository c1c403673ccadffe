"""Metrics of rewards: the mean of each part, and what was not decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rl.types import Reward


def mean_parts(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each part of the rewards, by name."""
    return {name: float(np.mean([each[name] for each in parts])) for name in (parts[0] if parts else ())}


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
        **{f"reward_{name}": value for name, value in mean_parts([r.parts for r in rewards]).items()},
        "reward_accuracy": float(np.mean([v.accuracy for v in verdicts])),
        "reward_format": float(np.mean([v.format for v in verdicts])),
        "reward_timeouts": sum(v.decided_by == "timeout" for v in verdicts),
        "reward_errors": crashed,
        **{f"reward_errors_{name}": count for name, count in sorted(errors.items())},
        **count_judged([r.judged for r in rewards], [v.decided_by for v in verdicts]),
    }


def count_judged(judged: Sequence[str], decided_by: Sequence[str]) -> dict[str, float]:
    """Returns what the judge did; nothing where there is none. Both are of each response: Reward.judged, and Verdict's.

    judge_failures are responses on which it gave no clear verdict: they count as wrong, but may be right.
    """
    found, decided = Counter(judged), Counter(decided_by)
    if found.keys() <= {"off"}:
        return {}
    return {
        "judge_asked": found["asked"],
        "judge_cached": found["cached"],
        "judge_right": decided["judge"],
        "judge_failures": decided["judge_failed"],
    }
