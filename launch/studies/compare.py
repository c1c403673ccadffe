"""Compares cells over seeds and questions, and says whether the paper's direction shows: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student_t

from launch.studies.study import Claim, Study

Verdict = Literal["shows", "is reversed", "is not decided"]
Accuracies = Mapping[int, Mapping[str, float]]
"""By seed: the accuracy of each held-out question."""

MIN_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A mean difference of two cells' accuracies, paired by seed and question."""

    value: float
    ci95: tuple[float, float]
    by_seed: dict[int, float]


def compare_cells(cell: Accuracies, other: Accuracies) -> Gain | None:
    """Returns how much `cell` is above `other` over the seeds that both have; None if there are none.

    The 95 % interval is over both seeds and questions: all seeds answer the same questions.

    Raises:
        ValueError: the cells were asked different questions.
    """
    seeds = [seed for seed in cell if seed in other]
    if not seeds:
        return None
    asked = [set(side[seed]) for side in (cell, other) for seed in seeds]
    if any(each != asked[0] for each in asked):
        raise ValueError(
            "the cells were not asked the same questions; delete their eval/ folders, and run again"
        )
    questions = sorted(asked[0])
    gains = np.array([[cell[seed][q] - other[seed][q] for q in questions] for seed in seeds])
    by_seed = {seed: float(row.mean()) for seed, row in zip(seeds, gains, strict=True)}
    return Gain(value=float(gains.mean()), ci95=crossed_interval(gains), by_seed=by_seed)


def crossed_interval(values: np.ndarray) -> tuple[float, float]:
    """Returns a 95 % interval of the mean of `values` [seeds, questions], for other seeds and other questions.

    The variance of the mean is that of the seeds' means plus that of the questions' means (what a seed does to a single
    question is in both, so the interval is rather too wide). The seeds' part is multiplied by Student's t for their
    number, 4.3 for three: so few say little of how much they vary. One seed has no such part.
    """
    num_seeds, num_questions = values.shape
    width = norm.ppf(0.975) * _standard_error(values.mean(axis=0))
    if num_seeds > 1:
        width = np.hypot(width, student_t.ppf(0.975, num_seeds - 1) * _standard_error(values.mean(axis=1)))
    return float(values.mean() - width), float(values.mean() + width)


def _standard_error(means: np.ndarray) -> float:
    return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else 0.0


def judge(gain: Gain) -> Verdict:
    """Says whether the better cell is above the worse: only if the interval of three or more seeds excludes zero.

    Of one, what a seed does by chance cannot be told from what the cell does; of two, hardly.
    """
    if len(gain.by_seed) < MIN_SEEDS:
        return "is not decided"
    if gain.ci95[0] > 0:
        return "shows"
    return "is reversed" if gain.ci95[1] < 0 else "is not decided"


def describe(study: Study, claim: Claim, gain: Gain) -> str:
    """Returns the sentence that says whether the paper's direction shows at this size."""
    seeds = ", ".join(f"{100 * value:+.1f}" for value in gain.by_seed.values())
    found = f"{100 * gain.value:+.1f} {format_interval(gain.ci95)} points, by seed {seeds}"
    better, worse = study.cell(claim.better).title, study.cell(claim.worse).title
    direction = f"The paper's direction, {better} above {worse} ({study.read_points(claim):+.1f})"
    return f"{direction}, {judge(gain)} at this size: {found}."


def format_interval(ci95: Sequence[float]) -> str:
    low, high = (100 * each for each in ci95)
    return f"[{low:+.1f}, {high:+.1f}]"
