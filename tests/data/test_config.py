"""Fields below their least values are refused by name."""

from __future__ import annotations

import pytest

from data_pipeline.config import WorkConfig, check_at_least


def test_the_first_field_below_its_least_value_is_named():
    work = WorkConfig(workers=3)
    check_at_least(work, "work.", workers=3)
    with pytest.raises(ValueError, match=r"^work\.workers=3 must be at least 4$"):
        check_at_least(work, "work.", workers=4)


def test_zero_workers_are_refused_without_ray():
    assert WorkConfig(workers=0, executor="ray").workers == 0
    with pytest.raises(ValueError, match=r"work\.workers=0 must be at least 1"):
        WorkConfig(workers=0)
