"""Compares cells over seeds and questions, and says whether the paper's direction shows: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from launch.studies.study import Claim, Study

Verdict = Literal["shows", "is reversed", "is not decided"]
Accuracies = Mapping[int, Mapping[str, float]]
"""By seed: the accuracy of each held-out question."""

MIN_SEEDS = 3
RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 500  # bounds the memory that many questions take


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A mean difference of two cells' accuracies, paired by seed and question."""

    value: float
    ci95: tuple[float, float]
    by_seed: dict[int, float]


def compare_cells(cell: Accuracies, other: Accuracies) -> Gain | None:
    """Returns how much `cell` is above `other` over the seeds that both have; None if there are none.

    The 95 % interval is a bootstrap that draws both seeds and questions: all seeds answer the same questions.

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
    return Gain(value=float(gains.mean()), ci95=bootstrap_crossed(gains), by_seed=by_seed)


def bootstrap_crossed(values: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean of `values` [seeds, questions], both drawn again."""
    rng, (num_seeds, num_questions) = np.random.default_rng(seed), values.shape
    means = []
    for _ in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        # how often each seed and each question is drawn, as shares: [resamples, seeds] and [resamples, questions]
        seeds = rng.multinomial(num_seeds, _even(num_seeds), RESAMPLES_AT_ONCE) / num_seeds
        questions = rng.multinomial(num_questions, _even(num_questions), RESAMPLES_AT_ONCE) / num_questions
        means.append(((seeds @ values) * questions).sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _even(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


def judge(gain: Gain) -> Verdict:
    """Says whether the better cell is above the worse: only if the interval and every one of three seeds agree.

    Of fewer, what a seed does by chance cannot be told from what the cell does.
    """
    if len(gain.by_seed) < MIN_SEEDS:
        return "is not decided"
    signs = {np.sign(value) for value in gain.by_seed.values()}
    if gain.ci95[0] > 0 and signs == {1}:
        return "shows"
    if gain.ci95[1] < 0 and signs == {-1}:
        return "is reversed"
    return "is not decided"


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
