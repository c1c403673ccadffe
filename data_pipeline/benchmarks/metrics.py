"""Numbers of benchmarks as published: pure functions of the results of their questions.

A metric returns numbers by name, the one that tables print first. Where several responses make one number out of a
group of questions (DynaMath, We-Math), the number is that of each round of responses, averaged over the rounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Numbers = dict[str, float]

Metadata = Mapping[str, str | int | float]
"""Of the sample that asks."""


@dataclass(frozen=True, kw_only=True)
class QuestionResult:
    """How the responses to one question were scored."""

    metadata: Metadata
    accuracies: tuple[float, ...]  # of each response; () where it could not be asked, which counts as wrong

    @property
    def accuracy(self) -> float:
        return sum(self.accuracies) / len(self.accuracies) if self.accuracies else 0.0


Metric = Callable[[Sequence[QuestionResult]], Numbers]


def first_number(numbers: Numbers) -> tuple[str, float]:
    """Returns the name and value of the number that tables print."""
    return next(iter(numbers.items()))


def mean_accuracy(results: Sequence[QuestionResult]) -> Numbers:
    """Returns the accuracy of all questions."""
    return {"accuracy": _mean([result.accuracy for result in results])}


def average_at_k(results: Sequence[QuestionResult]) -> Numbers:
    """Returns avg@k, the accuracy of k responses each, and pass@k, the share of questions with a right one among k."""
    k = _count_rounds(results)
    return {
        f"avg@{k}": _mean([result.accuracy for result in results]),
        f"pass@{k}": _mean([float(any(a == 1.0 for a in result.accuracies)) for result in results]),
    }


def worst_of_variants(results: Sequence[QuestionResult], size: int = 10) -> Numbers:
    """Returns DynaMath's worst case, the share of seed questions of which all variants are right, and their average.

    Args:
        size: variants of a seed question; groups with fewer count by those they have, and are reported.
    """
    groups = list(_group(results, "group").values())
    worst, average = list[float](), list[float]()
    for number in range(_count_rounds(results)):
        values = [[_of_round(result, number) for result in group] for group in groups]
        worst += [min(group) for group in values]
        average += [_mean(group) for group in values]
    incomplete = sum(len(group) != size for group in groups)
    return {"worst": _mean(worst), "average": _mean(average), **_only_if("incomplete_groups", incomplete)}


def knowledge_steps(results: Sequence[QuestionResult]) -> Numbers:
    """Returns We-Math's scores, loose and strict, and the shares of their four kinds of outcome.

    A problem is asked as a whole and in its steps. Whole wrong: IK, insufficient knowledge, if a step is wrong, else
    IG, inadequate generalisation. Whole right: CM, complete mastery, if all steps are right (loose: any), else RM,
    rote memorisation. The score is 1 - (IG / 2 + RM + IK). As published, RM is a share of the problems that are right
    as a whole, and the others are shares of all. Problems that lack a step are left out and counted.
    """
    problems = [_read_problem(group) for group in _group(results, "group").values()]
    whole = [problem for problem in problems if problem is not None]
    rounds = [_score_problems(whole, number) for number in range(_count_rounds(results)) if whole]
    scores = {name: _mean([numbers[name] for numbers in rounds]) for name in rounds[0]} if rounds else {}
    return {
        **({"loose": 0.0, "strict": 0.0} | scores),
        "accuracy": _mean([result.accuracy for result in results]),
        **_only_if("incomplete_groups", len(problems) - len(whole)),
    }


def grounding(results: Sequence[QuestionResult], threshold: float = 0.5) -> Numbers:
    """Returns the share of boxes whose IoU with the reference reaches the threshold, and the mean IoU."""
    hits = [_mean([float(iou >= threshold) for iou in result.accuracies]) for result in results]
    return {f"acc@{threshold:g}": _mean(hits), "mean_iou": _mean([result.accuracy for result in results])}


def list_units(results: Sequence[QuestionResult]) -> list[list[QuestionResult]]:
    """Returns the parts of which the first number of each metric here is the mean: questions, or groups of them.

    A group counts as one, as its questions are not independent of each other. Problems of We-Math that lack a step are
    left out, as they are in the metric.
    """
    alone = [[result] for result in results if "group" not in result.metadata]
    groups = _group(results, "group").values()
    return [*alone, *(group for group in groups if "step" not in group[0].metadata or _read_problem(group))]


def list_clusters(units: Sequence[Sequence[QuestionResult]], name: str) -> list[int]:
    """Returns for each unit the number of its cluster: those with the same metadata `name` are in one.

    The bootstrap resamples clusters. A unit without the metadata is one of its own.
    """
    numbers: dict[object, int] = {}
    keys = [unit[0].metadata.get(name, (place,)) for place, unit in enumerate(units)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


GROUPED: frozenset[Metric] = frozenset({worst_of_variants, knowledge_steps})
"""Metrics that need the metadata `group` of questions."""

_Problem = tuple[QuestionResult, list[QuestionResult]]
"""The question of the whole problem, and those of its steps."""


def _read_problem(group: Sequence[QuestionResult]) -> _Problem | None:
    """Returns None where a part of the problem is missing."""
    by_step = {str(result.metadata["step"]): result for result in group}
    whole = by_step.pop("multi", None)
    wanted = {str(step) for step in range(1, int(group[0].metadata["num_steps"]) + 1)}
    return (whole, list(by_step.values())) if whole and by_step.keys() == wanted else None


def _score_problems(problems: Sequence[_Problem], number: int) -> Numbers:
    total, num_right = len(problems), 0
    counts: dict[str, int] = {"IK": 0, "IG": 0, "CM_loose": 0, "CM_strict": 0}
    for whole, steps in problems:
        right = [_of_round(step, number) == 1.0 for step in steps]
        if _of_round(whole, number) == 1.0:
            num_right += 1
            counts["CM_loose"] += any(right)
            counts["CM_strict"] += all(right)
        else:
            counts["IG" if all(right) else "IK"] += 1
    rote = {kind: num_right - counts[f"CM_{kind}"] for kind in ("loose", "strict")}
    lost = 0.5 * counts["IG"] + counts["IK"]
    return {
        **{kind: 1 - (lost + rote[kind]) / total for kind in rote},
        **{name: count / total for name, count in counts.items()},
        **{f"RM_{kind}": count / num_right if num_right else 0.0 for kind, count in rote.items()},
    }


def _group(results: Sequence[QuestionResult], name: str) -> dict[str, list[QuestionResult]]:
    """Returns the results by a metadata; those without it are in no group."""
    groups = defaultdict[str, list[QuestionResult]](list)
    for result in results:
        if name in result.metadata:
            groups[str(result.metadata[name])].append(result)
    return groups


def _count_rounds(results: Sequence[QuestionResult]) -> int:
    return max((len(result.accuracies) for result in results), default=0)


def _of_round(result: QuestionResult, number: int) -> float:
    return result.accuracies[number] if number < len(result.accuracies) else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _only_if(name: str, count: int) -> Numbers:
    return {name: float(count)} if count else {}
