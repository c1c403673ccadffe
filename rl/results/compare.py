"""Compares two evaluations on the questions that both asked, benchmark by benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.evaluation.intervals import Difference, Score, score_accuracies
from rl.results.paired import McNemar, average_differences, bootstrap_difference, run_mcnemar
from rl.results.stored import StoredEvaluation, mean_tokens
from rl.results.units import choose_metric
from rl.rewards.failures import RIGHT

SCORING = (
    "reward.correct_by",
    "reward.use_judge",
    "reward.checker.mode",
    "reward.checker.deadline",
    "reward.judge.",
)
"""Settings that decide the score of a response: names, and beginnings of names."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkComparison:
    """Two evaluations on one benchmark; all numbers are of the questions that both asked."""

    metric: str  # its first number, as published
    questions: int
    only_before: int  # questions that are left out, as one side alone asked them
    only_after: int
    units: int  # that the bootstrap resamples: questions, or groups or clusters of them
    before: Score
    after: Score
    tokens_before: float  # mean of the responses
    tokens_after: float
    difference: Difference  # after less before
    # over units; None where one is neither right nor wrong as a whole, or they have clusters
    mcnemar: McNemar | None
    gained: tuple[str, ...]  # ids of questions that turned right
    lost: tuple[str, ...]
    other_settings: tuple[str, ...]  # that differ, none of which decides a score


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two evaluations, on one benchmark or several."""

    before: str
    after: str
    benchmarks: Mapping[str, BenchmarkComparison]
    mean: Difference | None  # over benchmarks, each of equal weight; None with one
    only_before: tuple[str, ...]  # benchmarks of one side alone
    only_after: tuple[str, ...]
    notes: tuple[str, ...]


Evaluations = Mapping[str, StoredEvaluation]


def compare_evaluations(
    before: Evaluations, after: Evaluations, names: tuple[str, str], *, seed: int = 42
) -> Comparison:
    """Compares the benchmarks that both have; two single evaluations are compared whatever their names.

    Raises:
        ValueError: they have no benchmark or no question in common, were scored by different rules, or their questions
            have different references.
    """
    if len(before) == len(after) == 1:
        name = next(iter(after))
        before = {name: next(iter(before.values()))}
    shared = [name for name in before if name in after]
    if not shared:
        raise ValueError(
            f"{names[0]} has {', '.join(before)} and {names[1]} has {', '.join(after)}: nothing in common; compare "
            "evaluations of the same benchmarks"
        )
    notes: list[str] = []
    found, parts = {}, []
    for number, name in enumerate(shared):
        found[name], means = _compare_one(before[name], after[name], (seed, number), notes)
        parts.append((found[name].difference, means))
    return Comparison(
        before=names[0],
        after=names[1],
        benchmarks=found,
        mean=average_differences(parts) if len(parts) > 1 else None,
        only_before=tuple(name for name in before if name not in after),
        only_after=tuple(name for name in after if name not in before),
        notes=tuple(dict.fromkeys(notes)),
    )


def _compare_one(
    before: StoredEvaluation, after: StoredEvaluation, seed: tuple[int, int], notes: list[str]
) -> tuple[BenchmarkComparison, NDArray[np.float64]]:
    """Returns the comparison, and the resampled means of its difference."""
    _check_scoring(before, after)
    shared = [name for name in before.questions if name in after.questions]
    _check_references(before, after, shared)
    metric = choose_metric([before, after], notes)
    old, new = ({name: each.questions[name] for name in shared} for each in (before, after))
    values = [metric.value_units(questions) for questions in (old, new)]
    if not values[0]:
        raise ValueError(
            f"{after.name}: no group of questions was asked whole by both sides; compare larger subsets"
        )
    clusters = metric.list_clusters(new)
    gains = [b - a for a, b in zip(*values, strict=True)]
    difference, means = bootstrap_difference(gains, seed, clusters)
    is_independent = metric.is_whole and len({*clusters}) == len(clusters)
    results = [[metric.read_result(*each) for each in questions.items()] for questions in (old, new)]
    right = [[result.accuracy >= RIGHT for result in side] for side in results]
    gained = tuple(name for name, a, b in zip(shared, *right, strict=True) if b and not a)
    lost = tuple(name for name, a, b in zip(shared, *right, strict=True) if a and not b)
    compared = BenchmarkComparison(
        metric=metric.name(new),
        questions=len(shared),
        only_before=len(before.questions) - len(shared),
        only_after=len(after.questions) - len(shared),
        units=len({*clusters}),
        before=score_accuracies(values[0], seed[0], clusters),
        after=score_accuracies(values[1], seed[0], clusters),
        tokens_before=mean_tokens(before.list_responses(shared)),
        tokens_after=mean_tokens(after.list_responses(shared)),
        difference=difference,
        mcnemar=_test_units(*values) if is_independent else None,
        gained=gained,
        lost=lost,
        other_settings=tuple(_list_other_settings(before, after)),
    )
    return compared, means


def _test_units(before: Sequence[float], after: Sequence[float]) -> McNemar | None:
    """Tests the units that turned, as questions of one group do not turn independently of each other."""
    if not {*before, *after} <= {0.0, 1.0}:
        return None
    pairs = list(zip(before, after, strict=True))
    return run_mcnemar(pairs.count((0.0, 1.0)), pairs.count((1.0, 0.0)))


def _check_scoring(before: StoredEvaluation, after: StoredEvaluation) -> None:
    """Raises ValueError where the two were scored by different rules."""
    if names := [name for name in _list_differing(before, after) if name.startswith(SCORING)]:
        raise ValueError(
            f"{before.folder} and {after.folder} were scored by different rules: {_say(before, after, names)}; "
            "evaluate one of them again with the settings of the other"
        )


def _check_references(before: StoredEvaluation, after: StoredEvaluation, shared: Sequence[str]) -> None:
    """Raises ValueError where no question is shared, or one has two references."""
    if not shared:
        raise ValueError(
            f"{before.folder} and {after.folder} have no question in common: {next(iter(before.questions))} and "
            f"{next(iter(after.questions))}, for example; compare evaluations of the same shards"
        )
    for name in shared:
        answers = [each.questions[name][0].answer for each in (before, after)]
        if answers[0] != answers[1]:
            raise ValueError(
                f"the reference of question {name} is {answers[0]!r} in {before.folder} and {answers[1]!r} in "
                f"{after.folder}; evaluate both on the same shards"
            )


def _list_other_settings(before: StoredEvaluation, after: StoredEvaluation) -> list[str]:
    """Returns the settings that differ, but for the model's, each with both values."""
    counts = [each.num_responses for each in (before, after)]
    numbers = [f"sampling.n {counts[0]} and {counts[1]}"] if counts[0] != counts[1] else []
    names = [name for name in _list_differing(before, after) if name != "model"]
    return numbers + [_say(before, after, [name]) for name in names]


def _list_differing(before: StoredEvaluation, after: StoredEvaluation) -> list[str]:
    names = sorted({*before.settings, *after.settings})
    return [name for name in names if before.settings.get(name) != after.settings.get(name)]


def _say(before: StoredEvaluation, after: StoredEvaluation, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {before.settings.get(name)} and {after.settings.get(name)}" for name in names)
