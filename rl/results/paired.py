"""Statistics of two evaluations of the same questions: exact McNemar test, paired bootstrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from rl.evaluation.intervals import Difference, bootstrap_means, interval95


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """The test whether questions that turned right and those that turned wrong are equally frequent."""

    gained: int  # wrong before, right after
    lost: int  # right before, wrong after
    p: float  # two-sided


def run_mcnemar(gained: int, lost: int) -> McNemar:
    """Tests exactly: under the null each question that changed is a gain with probability 1/2.

    p is that of the binomial distribution, two-sided: twice the smaller tail, at most 1. It keeps its level for any
    number of questions, and is the more careful choice beside mid-p and chi-squared.

    >>> run_mcnemar(5, 0).p
    0.0625
    """
    changed = gained + lost
    tail = sum(comb(changed, k) for k in range(min(gained, lost) + 1))
    return McNemar(gained=gained, lost=lost, p=min(1.0, float(2 * tail / 2**changed)))


def bootstrap_difference(
    gains: Sequence[float], seed: int | Sequence[int], clusters: Sequence[int] = ()
) -> tuple[Difference, NDArray[np.float64]]:
    """Returns the mean gain with its interval, and the means of the resamples that the interval is of.

    Args:
        gains: of each unit: a question, or a group of questions that count as one.
        clusters: of the units, see bootstrap_means.
    """
    means = bootstrap_means(gains, np.random.default_rng(seed), clusters)
    return Difference(value=float(np.mean(gains)), ci95=interval95(means)), means


def pair_accuracies(before: Mapping[str, float], after: Mapping[str, float], *, seed: int = 0) -> Difference:
    """Returns the mean gain in accuracy from `before` to `after`, by the ids of the questions.

    Raises:
        ValueError: the two are not of the same questions.
    """
    if before.keys() != after.keys() or not before:
        odd = sorted(before.keys() ^ after.keys())[:3]
        raise ValueError(
            f"before has {len(before)} and after {len(after)} questions; they must be the same, and at least one; "
            f"only on one side: {odd}. Evaluate both on the same shards with the same limit"
        )
    return bootstrap_difference([after[question] - before[question] for question in sorted(before)], seed)[0]


def average_differences(parts: Sequence[tuple[Difference, NDArray[np.float64]]]) -> Difference:
    """Returns the mean of the differences of several benchmarks, each of equal weight.

    Its interval is that of the means of their resamples, which were drawn independently of each other: the questions of
    each benchmark are a sample, the choice of benchmarks is none.
    """
    values = [difference.value for difference, _ in parts]
    means = np.mean([means for _, means in parts], axis=0)
    return Difference(value=float(np.mean(values)), ci95=interval95(means))
