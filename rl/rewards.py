"""What an answer is worth: a weighted sum of what the answer checker found in it.

A further part (length, a judge) is another field of RewardParts, another weight and another term here.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.verify.check import Verdict
from data_pipeline.verify.pool import VerifyPool
from rl.config import RewardConfig
from rl.types import RewardParts


def score(verdict: Verdict, config: RewardConfig) -> RewardParts:
    """The reward of one checked answer, with its parts."""
    return RewardParts(
        total=config.accuracy_weight * verdict.accuracy + config.format_weight * verdict.format,
        accuracy=verdict.accuracy,
        format=verdict.format,
        extracted=verdict.extracted,
        decided_by=verdict.decided_by,
    )


def score_rollouts(
    pool: VerifyPool, config: RewardConfig, responses: Sequence[str], answers: Sequence[str]
) -> list[RewardParts]:
    """Rewards of responses to their reference answers (one each, in order)."""
    verdicts = pool.check_many(list(zip(responses, answers, strict=True)))
    return [score(verdict, config) for verdict in verdicts]
