"""Comparison of cells over seeds and questions, and the sentence about the paper's direction."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from launch.studies.compare import Gain, compare_cells, crossed_interval, describe, judge
from launch.studies.recipes import STUDIES


def test_interval_of_one_seed_is_that_of_its_questions() -> None:
    values = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], size=200, p=[0.1, 0.6, 0.3])
    oracle = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert crossed_interval(values[None]) == pytest.approx(oracle)


def test_interval_of_seeds_that_alone_vary_is_that_of_student() -> None:
    by_seed = np.array([0.02, 0.05, 0.035])
    oracle = stats.t.interval(0.95, 2, loc=by_seed.mean(), scale=stats.sem(by_seed))
    assert crossed_interval(np.repeat(by_seed[:, None], 512, axis=1)) == pytest.approx(oracle)


@pytest.mark.parametrize("seeds_vary", [0.0, 0.02, 0.08])
@pytest.mark.parametrize("num_seeds", [3, 5])
def test_interval_holds_the_truth_in_95_of_100(num_seeds: int, seeds_vary: float) -> None:
    """Of gains of -1, 0 or 1 whose questions and seeds differ; a percentile bootstrap of three seeds: 80 of 100."""
    rng, held = np.random.default_rng(7), list[bool]()
    for _ in range(400):
        shift = 0.05 * rng.normal(size=(1, 200)) + seeds_vary * rng.normal(size=(num_seeds, 1))
        gains = np.sign(rng.uniform(-1, 1, size=(num_seeds, 200)) + shift) * (
            rng.random((num_seeds, 200)) < 0.3
        )
        low, high = crossed_interval(gains)
        held.append(low <= 0 <= high)
    assert np.mean(held) > 0.93


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
    ("ci95", "num_seeds", "verdict"),
    [
        ((0.01, 0.05), 3, "shows"),
        ((0.01, 0.05), 2, "is not decided"),  # too few seeds
        ((0.01, 0.05), 1, "is not decided"),
        ((-0.01, 0.05), 5, "is not decided"),
        ((-0.05, -0.01), 3, "is reversed"),
        ((0.0, 0.0), 3, "is not decided"),
    ],
)
def test_verdict_needs_three_seeds_and_an_interval_without_zero(
    ci95: tuple[float, float], num_seeds: int, verdict: str
) -> None:
    gain = Gain(value=0.0, ci95=ci95, by_seed=dict.fromkeys(range(num_seeds), 0.0))
    assert judge(gain) == verdict


def test_sentence() -> None:
    gain = Gain(value=0.031, ci95=(0.010, 0.052), by_seed={42: 0.04, 7: 0.022, 11: 0.031})
    study = STUDIES["answer_diversity"]
    assert describe(study, study.claims[0], gain) == (
        "The paper's direction, ×8 above ×1 (+4.7), shows at this size: "
        "+3.1 [+1.0, +5.2] points, by seed +4.0, +2.2, +3.1."
    )
