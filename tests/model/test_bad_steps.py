"""Consecutive bad steps are counted, and stop the run past the limit."""

from __future__ import annotations

import pytest

from megatron_omr.faults.bad_steps import BadSteps, EmptySteps


def test_good_step_resets_the_row_but_not_the_total() -> None:
    counts = BadSteps()
    for skipped in (True, True, False, True):
        counts = counts.after(skipped, limit=2, samples=lambda: pytest.fail("asked within the limit"))
    assert counts == BadSteps(in_a_row=1, total=3)


def test_one_step_past_the_limit_stops_and_names_the_samples() -> None:
    counts = BadSteps(in_a_row=2, total=5)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .*max_bad_steps=2.*samples: a, b"):
        counts.after(True, limit=2, samples=lambda: {"b", "a"})


def test_steps_without_a_sample_stop_at_the_limit_in_a_row() -> None:
    counts = EmptySteps()
    for num_learned in (0, 0, 5, 0, 0):
        counts = counts.after(num_learned, limit=3, cases=lambda: pytest.fail("asked within the limit"))
    with pytest.raises(ValueError, match=r"nothing was learned in 3 steps.*\n2 text.*\n.*--model"):
        counts.after(0, limit=3, cases=lambda: "2 text, the first: a")
