"""Means of questions' accuracies with 95 % bootstrap intervals; the bootstrap resamples questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def score_accuracies(accuracies: Sequence[float], seed: int) -> Score:
    """Returns the mean of the accuracies of questions."""
    return Score(
        accuracy=float(np.mean(accuracies)), ci95=bootstrap_ci95(accuracies, seed=seed), count=len(accuracies)
    )


def bootstrap_ci95(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Returns the 95 % percentile bootstrap interval of the mean."""
    return interval95(bootstrap_means(values, np.random.default_rng(seed)))


def bootstrap_means(values: Sequence[float], rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns the means of RESAMPLES resamples of the values."""
    data = np.asarray(values, dtype=np.float64)
    blocks = (
        rng.integers(len(data), size=(RESAMPLES_AT_ONCE, len(data)))
        for _ in range(0, RESAMPLES, RESAMPLES_AT_ONCE)
    )
    return np.concatenate([data[block].mean(axis=1) for block in blocks])


def interval95(means: NDArray[np.float64]) -> Interval:
    """Returns the 2.5 and 97.5 % quantiles of the means of resamples."""
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def paired_difference(
    before: Mapping[str, float], after: Mapping[str, float], *, seed: int = 0
) -> tuple[float, Interval]:
    """Returns the mean gain in accuracy from `before` to `after` (by question id) and its paired bootstrap ci95.

    Raises:
        ValueError: the two are not of the same questions.
    """
    if before.keys() != after.keys() or not before:
        odd = sorted(before.keys() ^ after.keys())[:3]
        raise ValueError(
            f"before has {len(before)} and after {len(after)} questions; they must be the same, and at least one; "
            f"only on one side: {odd}. Evaluate both on the same shards with the same limit"
        )
    gains = [after[question] - before[question] for question in sorted(before)]
    return float(np.mean(gains)), bootstrap_ci95(gains, seed=seed)
