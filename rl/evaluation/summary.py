"""The numbers of an evaluation, over all questions and by kind.

Accuracy is averaged over the `n` responses to a question first (avg@n).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl.evaluation.baseline import Baseline
from rl.evaluation.intervals import Score, score_accuracies
from rl.rewards.metrics import count_judged, mean_parts
from rl.types import Group


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Response lengths in tokens, over all responses."""

    mean: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True, kw_only=True)
class EvalSummary(Score):
    """The content of summary.json."""

    by_kind: dict[str, Score]
    format: float  # mean of the responses
    parts: dict[str, float]  # of the reward, before weighting: means of the responses
    length: Lengths
    truncated: int  # responses cut off at the token limit
    decided_by: dict[str, int]  # responses by the rule of the checker that decided
    judged: dict[str, float]  # what the judge did; empty where there is none
    bad_questions: dict[str, int]  # those that could not be asked, which count as wrong, by reason
    baseline: Baseline | None = None  # None without training shards


def summarize(groups: Sequence[Group], *, seed: int) -> EvalSummary:
    """Returns the numbers over all questions, and by kind."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    verdicts = [reward.verdict for reward in rewards]
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts] or [0])
    kinds = sorted({group.prompt.kind for group in groups})
    return EvalSummary(
        **vars(_score(groups, seed)),
        by_kind={kind: _score([g for g in groups if g.prompt.kind == kind], seed) for kind in kinds},
        format=float(np.mean([verdict.format for verdict in verdicts] or [0.0])),
        parts=mean_parts(rewards),
        length=Lengths(
            mean=float(lengths.mean()),
            p50=float(np.median(lengths)),
            p95=float(np.quantile(lengths, 0.95)),
            max=float(lengths.max()),
        ),
        truncated=sum(rollout.finish_reason == "length" for rollout in rollouts),
        decided_by=dict(sorted(Counter(verdict.decided_by for verdict in verdicts).items())),
        judged=count_judged(rewards),
        bad_questions=dict(sorted(Counter(group.fault.reason for group in groups if group.fault).items())),
    )


def _score(groups: Sequence[Group], seed: int) -> Score:
    return score_accuracies([group.accuracy for group in groups], seed)
