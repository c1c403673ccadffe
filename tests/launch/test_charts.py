"""Properties of the report's chart arithmetic."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.report.axes import format_number, format_seconds, nice_ticks
from launch.report.lines import smooth, spread, thin

finite = st.floats(-1e9, 1e9)


@given(finite, finite)
def test_ticks_cover_the_values_and_are_few(a, b):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high)) + 1e-150
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack and 2 <= len(ticks) <= 7


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=900))
def test_thinning_keeps_ends_and_extremes(values):
    points = list(enumerate(values))
    kept = thin(points, limit=100)
    assert kept[0] == points[0] and kept[-1] == points[-1] and set(kept) <= set(points) and len(kept) <= 104
    assert {min(values), max(values)} <= {value for _, value in kept}


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200))
def test_smoothing_stays_within_the_values_and_is_exact_on_a_constant(values):
    assert all(
        min(values) - 1e-6 <= value <= max(values) + 1e-6 for _, value in smooth(list(enumerate(values)))
    )
    constant = smooth([(step, 2.5) for step in range(len(values))])
    assert [value for _, value in constant] == pytest.approx([2.5] * len(values))


@given(st.lists(st.floats(0, 200), min_size=1, max_size=5))
def test_labels_are_moved_apart(heights):
    placed = spread(heights, gap=16, low=0, high=200)
    ordered = sorted(placed)
    assert all(b - a >= 16 - 1e-6 for a, b in pairwise(ordered))
    assert ordered[0] >= 0 and ordered[-1] <= 200


@given(st.integers(1, 200), st.floats(-10, 10))
def test_smoothing_does_not_lag(num_points, slope):
    """A straight line stays as it is wherever there is as much to look ahead as to look back."""
    line = [(step, slope * step) for step in range(num_points)]
    half = (num_points + 1) // 2
    assert [v for _, v in smooth(line)[:half]] == pytest.approx([v for _, v in line[:half]], abs=1e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123, "0.0123"),
        (4.56, "4.56"),
        (789.1, "789"),
        (12345, "12.3k"),
        (4.5e-6, "4.5e-6"),
        (2e6, "2M"),
    ],
)
def test_numbers_read_well(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.42, "0.42 s"), (1.0, "1.0 s"), (12.3, "12 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_times_read_well(value, text):
    assert format_seconds(value) == text
