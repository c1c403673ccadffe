"""Comparison of cells over seeds and questions, and the sentence about the paper's direction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from launch.studies.compare import Gain, bootstrap_crossed, compare_cells, describe, judge
from launch.studies.recipes import STUDIES


def test_interval_of_one_seed_is_the_percentile_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], size=200, p=[0.1, 0.6, 0.3])
    oracle = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    low, high = bootstrap_crossed(values[None])
    assert low == pytest.approx(oracle.confidence_interval.low, abs=0.006)
    assert high == pytest.approx(oracle.confidence_interval.high, abs=0.006)


def test_interval_draws_seeds_and_questions() -> None:
    """Against drawing rows and columns of the matrix one resample after the other."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(3, 40)) * 0.2 + rng.normal(size=(3, 1)) * 0.3
    means = [values[rng.integers(3, size=3)][:, rng.integers(40, size=40)].mean() for _ in range(20_000)]
    low, high = bootstrap_crossed(values)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)
    questions_alone = [values[:, rng.integers(40, size=40)].mean() for _ in range(2_000)]
    assert high - low > 1.5 * np.ptp(np.quantile(questions_alone, [0.025, 0.975]))


def test_gain_is_paired_by_seed_and_question() -> None:
    low = {1: {"a": 0.0, "b": 0.0}, 2: {"a": 1.0, "b": 0.0}}
    high = {2: {"b": 1.0, "a": 1.0}, 1: {"b": 1.0, "a": 0.0}, 3: {"a": 0.0, "b": 0.0}}
    gain = compare_cells(high, low)
    assert gain is not None and gain.by_seed == {2: 0.5, 1: 0.5}  # seed 3 has no pair
    assert gain.value == 0.5
    assert compare_cells(high, {}) is None
    with pytest.raises(ValueError, match="not asked the same questions"):
        compare_cells({1: {"a": 0.0}}, low)


@pytest.mark.parametrize(
    ("ci95", "by_seed", "verdict"),
    [
        ((0.01, 0.05), (0.02, 0.04, 0.03), "shows"),
        ((0.01, 0.05), (0.02, 0.04), "is not decided"),  # too few seeds
        ((0.01, 0.05), (-0.01, 0.06, 0.06), "is not decided"),  # a seed disagrees
        ((-0.01, 0.05), (0.02, 0.04, 0.01), "is not decided"),
        ((-0.05, -0.01), (-0.02, -0.04, -0.03), "is reversed"),
        ((-0.05, -0.01), (-0.02, 0.0, -0.03), "is not decided"),
        ((0.0, 0.0), (0.0, 0.0, 0.0), "is not decided"),
    ],
)
def test_verdict_needs_interval_and_every_seed(
    ci95: tuple[float, float], by_seed: tuple[float, ...], verdict: str
) -> None:
    gain = Gain(value=0.0, ci95=ci95, by_seed=dict(enumerate(by_seed)))
    assert judge(gain) == verdict


def test_sentence() -> None:
    gain = Gain(value=0.031, ci95=(0.010, 0.052), by_seed={42: 0.04, 7: 0.022, 11: 0.031})
    study = STUDIES["answer_diversity"]
    assert describe(study, study.claims[0], gain) == (
        "The paper's direction, ×8 above ×1 (+4.7), shows at this size: "
        "+3.1 [+1.0, +5.2] points, by seed +4.0, +2.2, +3.1."
    )
