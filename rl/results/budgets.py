"""Accuracy at smaller token limits, from one evaluation: its responses are cut, and their answers read again.

A response with a limit of B tokens is the beginning of the one with a larger limit: sampling does not know the limit,
and a response has its own seed. What an engine's batches change in rounding is the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np

from data_pipeline.verify.check import Verdict
from rl.evaluation.intervals import Score
from rl.evaluation.summary import Records
from rl.results.stored import StoredEvaluation, mean_tokens
from rl.results.units import UnitMetric
from rl.types import AskedResponse

Check = Callable[[Sequence[tuple[str, str]]], list[Verdict]]
"""Returns verdicts on pairs of response and reference."""


class Tokens(Protocol):
    """What cuts a text: a model's ChatFormat."""

    def tokenize(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """An evaluation with responses of at most `budget` tokens."""

    budget: int
    score: Score
    mean_tokens: float
    truncated: float  # share of the responses


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One evaluation at several budgets, ascending; the last point is the evaluation itself."""

    metric: str
    points: tuple[BudgetPoint, ...]
    responses: int
    inexact: int
    """Responses whose text has another number of tokens than were sampled, so that a cut may be some tokens off."""


def check_budgets(evaluation: StoredEvaluation, budgets: Sequence[int]) -> list[int]:
    """Returns the budgets in ascending order, without duplicates and the evaluation's own limit.

    Raises:
        ValueError: one is below 1 or above the evaluation's limit, or its responses cannot be scored again.
    """
    for budget in budgets:
        if not 1 <= budget <= evaluation.max_tokens:
            raise ValueError(
                f"--budgets {budget} must be from 1 to {evaluation.max_tokens}, by the sampling.max_tokens and "
                f"engine.max_model_len of {evaluation.folder}; for more evaluate with larger ones"
            )
    correct_by = evaluation.settings.get("reward.correct_by", "accuracy")
    has_own = evaluation.benchmark is not None and evaluation.benchmark.score is not None
    if correct_by != "accuracy" or has_own:
        raise ValueError(
            f"{evaluation.folder} was scored by {evaluation.name if has_own else correct_by}, and --budgets "
            "reads answers with the answer checker alone; leave --budgets out"
        )
    return sorted({budget for budget in budgets if budget < evaluation.max_tokens})


def choose_evaluations(
    evaluations: Mapping[str, StoredEvaluation], budgets: Sequence[int], notes: list[str]
) -> dict[str, StoredEvaluation]:
    """Returns those that can be cut at these budgets; notes say why others cannot.

    Raises:
        ValueError: none can.
    """
    chosen, problems = dict[str, StoredEvaluation](), list[str]()
    for name, each in evaluations.items():
        try:
            check_budgets(each, budgets)
            chosen[name] = each
        except ValueError as error:
            problems.append(str(error))
    if not chosen:
        raise ValueError("; ".join(problems))
    notes += [f"Without budgets: {problem}" for problem in problems]
    return chosen


def sweep_budgets(
    evaluation: StoredEvaluation,
    budgets: Sequence[int],
    tokens: Tokens,
    check: Check,
    metric: UnitMetric,
    *,
    seed: int,
) -> Sweep:
    """Returns the evaluation at each of the budgets and as it is.

    A cut response whose answer is that of the whole keeps its verdict, so also a judge's; others are checked by rules
    alone.
    """
    budgets = check_budgets(evaluation, budgets)
    responses = evaluation.list_responses()
    ids = {
        (r.id, r.rollout): tokens.tokenize(r.response or "")
        for r in responses
        if r.response_len > min(budgets, default=0)
    }
    points = []
    for budget in budgets:
        questions = cut_questions(evaluation.questions, budget, ids, tokens, check)
        points.append(_measure(budget, questions, metric, seed))
    points.append(_measure(evaluation.max_tokens, evaluation.questions, metric, seed))
    inexact = sum(
        len(ids[r.id, r.rollout]) != r.response_len - (r.finish_reason == "stop")
        for r in responses
        if (r.id, r.rollout) in ids
    )
    return Sweep(
        metric=metric.name(evaluation.questions),
        points=tuple(points),
        responses=len(responses),
        inexact=inexact,
    )


def cut_questions(
    questions: Mapping[str, Records],
    budget: int,
    ids: Mapping[tuple[str, int], Sequence[int]],
    tokens: Tokens,
    check: Check,
) -> dict[str, list[AskedResponse]]:
    """Returns the records with responses of at most `budget` tokens, as an evaluation of that limit would have them.

    Their rewards are still those of the whole responses.

    Args:
        ids: tokens of the responses that are longer, by question and number.
    """
    longer = [r for records in questions.values() for r in records if r.response_len > budget]
    texts = [tokens.decode(ids[record.id, record.rollout][:budget]) for record in longer]
    verdicts = check([(text, record.answer) for text, record in zip(texts, longer, strict=True)])
    cut = {
        (record.id, record.rollout): _cut(record, budget, text, verdict)
        for record, text, verdict in zip(longer, texts, verdicts, strict=True)
    }
    return {
        name: [cut.get((record.id, record.rollout), record) for record in records]
        for name, records in questions.items()
    }


def _cut(record: AskedResponse, budget: int, text: str, verdict: Verdict) -> AskedResponse:
    cut = replace(record, response=text, response_len=budget, finish_reason="length")
    if verdict.extracted and verdict.extracted == record.extracted:
        return replace(cut, format=verdict.format)
    return replace(cut, **asdict(verdict))


def _measure(budget: int, questions: Mapping[str, Records], metric: UnitMetric, seed: int) -> BudgetPoint:
    responses = [record for records in questions.values() for record in records if not record.fault]
    return BudgetPoint(
        budget=budget,
        score=metric.score(questions, seed),
        mean_tokens=mean_tokens(responses),
        truncated=float(np.mean([record.finish_reason == "length" for record in responses] or [0.0])),
    )
