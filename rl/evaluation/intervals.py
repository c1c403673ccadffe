"""Means of questions' accuracies with 95 % bootstrap intervals, which resample questions, or clusters of them.

Questions about one picture are not independent: as a cluster they are drawn together, and the mean is over all drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 100  # bounds the memory that many questions take


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean accuracy of `count` questions."""

    accuracy: float
    ci95: Interval
    count: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference of two accuracies of the same questions."""

    value: float
    ci95: Interval


def score_accuracies(accuracies: Sequence[float], seed: int, clusters: Sequence[int] = ()) -> Score:
    """Returns the mean of the accuracies of questions, of which `clusters` gives the cluster of each."""
    interval = bootstrap_ci95(accuracies, seed=seed, clusters=clusters)
    return Score(accuracy=float(np.mean(accuracies)), ci95=interval, count=len(accuracies))


def bootstrap_ci95(values: Sequence[float], *, seed: int = 0, clusters: Sequence[int] = ()) -> Interval:
    """Returns the 95 % percentile bootstrap interval of the mean."""
    return interval95(bootstrap_means(values, np.random.default_rng(seed), clusters))


def bootstrap_means(
    values: Sequence[float], rng: np.random.Generator, clusters: Sequence[int] = ()
) -> NDArray[np.float64]:
    """Returns the means of RESAMPLES resamples of the values.

    Args:
        clusters: of each value the number of its cluster, from 0; by default each value is one of its own.
    """
    numbers = np.asarray(clusters or range(len(values)))
    sums = np.bincount(numbers, weights=np.asarray(values, dtype=np.float64))
    sizes = np.bincount(numbers)
    blocks = (
        rng.integers(len(sums), size=(RESAMPLES_AT_ONCE, len(sums)))
        for _ in range(0, RESAMPLES, RESAMPLES_AT_ONCE)
    )
    return np.concatenate([sums[block].sum(axis=1) / sizes[block].sum(axis=1) for block in blocks])


def interval95(means: NDArray[np.float64]) -> Interval:
    """Returns the 2.5 and 97.5 % quantiles of the means of resamples."""
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
