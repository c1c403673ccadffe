"""Times of day are equal on a clock, not as numbers."""

from __future__ import annotations

import pytest

from data_pipeline.verify.rules.times import is_same_time


@pytest.mark.parametrize(
    ("given", "wanted", "is_same"),
    [
        ("03:30", "3:30", True),
        ("15:30", "3:30 pm", True),
        ("3:30 p.m.", "3:30 PM", True),
        ("3:30", "3:30 pm", True),  # leaves the half of the day out
        ("12:00 am", "0:00", True),  # midnight
        ("3:30 am", "3:30 pm", False),
        ("15:30", "3:30", False),  # neither says pm
        ("3:30", "1:10", False),
        ("3:30:15", "3:30", False),
        ("3", "3:30", None),
        ("3:75", "4:15", None),  # no minute 75
    ],
)
def test_times_are_compared(given: str, wanted: str, is_same: bool | None):
    assert is_same_time(given, wanted) is is_same
