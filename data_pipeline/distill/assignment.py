"""Decides which teachers are asked a question: pure functions."""

from __future__ import annotations

import random

from data_pipeline.distill.config import AssignConfig


def is_asked(
    assign: AssignConfig,
    teacher: int,
    count: int,
    id: str,
    *,
    rate: float | None = None,
    solved: bool = False,
) -> bool:
    """Returns whether teacher number `teacher` of `count` is asked the question of this id.

    Args:
        rate: the student's pass rate; a question without one is not asked where pass rates decide.
        solved: an earlier teacher's response to it was kept.
    """
    if exclude(assign, rate):
        return False
    if assign.way == "cascade":
        return not solved
    if assign.way == "shares":
        return teacher == draw_teacher(id, assign.shares or (1.0,) * count)
    if assign.way == "by_pass_rate" and rate is not None:
        return teacher == sum(rate < threshold for threshold in assign.thresholds)
    return True


def exclude(assign: AssignConfig, rate: float | None) -> str:
    """Returns why a question of this pass rate is left to no teacher, unscored or too_easy; "" where it is not."""
    if assign.needs_pass_rates and rate is None:
        return "unscored"
    if assign.max_pass_rate is not None and rate is not None and rate > assign.max_pass_rate:
        return "too_easy"
    return ""


def draw_teacher(id: str, shares: tuple[float, ...]) -> int:
    """Returns the number of a teacher, drawn by `shares`; the same one for a question in every run."""
    return random.Random(id).choices(range(len(shares)), shares)[0]
