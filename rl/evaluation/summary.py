"""The numbers of an evaluation, from its records: over all questions, and by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl.evaluation.attempts import find_majority, find_pass, list_attempts
from rl.evaluation.baseline import Baseline
from rl.evaluation.intervals import Score, score_accuracies
from rl.rewards.failures import count_failures
from rl.rewards.metrics import count_judged, mean_parts
from rl.types import AskedResponse

Records = Sequence[AskedResponse]
"""Of one question: its responses in their order, or the one record that says why it could not be asked."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Response lengths in tokens, over all responses."""

    mean: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True, kw_only=True)
class EvalSummary(Score):
    """The content of summary.json. The accuracy of a question is the mean over its responses (avg@n)."""

    by_kind: dict[str, Score]
    pass_at: dict[str, Score]  # by k: one of k responses is right; empty with one response to a question
    majority_at: dict[
        str, Score
    ]  # by k: the most frequent answer of the first k responses is right; likewise
    format: float  # mean of the responses
    parts: dict[str, float]  # of the reward, before weighting: means of the responses
    length: Lengths
    failures: dict[
        str, int
    ]  # those that are not right by what went wrong, see failures.py; not_asked are questions
    truncated: int  # responses cut off at the token limit
    decided_by: dict[str, int]  # responses by the rule of the checker that decided
    judged: dict[str, float]  # what the judge did; empty where there is none
    bad_questions: dict[str, int]  # those that could not be asked, which count as wrong, by reason
    baseline: Baseline | None = None  # None without training shards


def summarize(questions: Sequence[Records], *, seed: int) -> EvalSummary:
    """Returns the numbers over all questions; `seed` is that of the intervals."""
    responses = [record for records in questions for record in records if not record.fault]
    lengths = np.array([record.response_len for record in responses] or [0])
    kinds = sorted({records[0].kind for records in questions})
    faults = Counter(records[0].fault.partition(": ")[0] for records in questions if records[0].fault)
    attempts = list_attempts(max(len(records) for records in questions))
    return EvalSummary(
        **vars(_score(questions, seed)),
        by_kind={
            kind: _score([records for records in questions if records[0].kind == kind], seed)
            for kind in kinds
        },
        pass_at={str(k): score_accuracies([find_pass(r, k) for r in questions], seed) for k in attempts},
        majority_at={
            str(k): score_accuracies([find_majority(r, k) for r in questions], seed) for k in attempts
        },
        format=float(np.mean([record.format for record in responses] or [0.0])),
        parts=mean_parts([record.parts for record in responses]),
        length=Lengths(
            mean=float(lengths.mean()),
            p50=float(np.median(lengths)),
            p95=float(np.quantile(lengths, 0.95)),
            max=float(lengths.max()),
        ),
        failures=count_failures(record for records in questions for record in records),
        truncated=sum(record.finish_reason == "length" for record in responses),
        decided_by=dict(sorted(Counter(record.decided_by for record in responses).items())),
        judged=count_judged([r.judged for r in responses], [r.decided_by for r in responses]),
        bad_questions=dict(sorted(faults.items())),
    )


def mean_accuracy(records: Records) -> float:
    """Returns the mean accuracy of the responses to a question; 0 where it could not be asked."""
    return float(np.mean([record.accuracy for record in records]))


def _score(questions: Sequence[Records], seed: int) -> Score:
    return score_accuracies([mean_accuracy(records) for records in questions], seed)
