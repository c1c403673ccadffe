"""Charts of accuracy against tokens of evaluations, beside the points that the paper prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.published.openmmreasoner import TOKENS, TOKENS_SOURCE
from launch.report.charts import Interval
from launch.report.evaluations.points import Series, draw_points
from launch.report.page import Figure, Section
from rl.evaluation.intervals import Score

Dot = tuple[str, float, Score]
"""An evaluation's name, the mean tokens of its responses, its score."""


def draw_tokens(dots: Mapping[str, Sequence[Dot]]) -> Section:
    """Returns a chart for each benchmark, with the paper's points where it has some."""
    return Section(
        "Accuracy against tokens",
        "Further up and further to the left is better.",
        [_draw_benchmark(name, each) for name, each in dots.items()],
    )


def interval_of(score: Score) -> Interval:
    """Returns a score as charts take it."""
    return Interval(value=score.accuracy, low=score.ci95[0], high=score.ci95[1])


def _draw_benchmark(benchmark: str, dots: Sequence[Dot]) -> Figure:
    series = [Series(name=name, points=((tokens, interval_of(score)),)) for name, tokens, score in dots]
    printed = [point for point in TOKENS if point.benchmark == benchmark]
    for point in printed:
        share = point.accuracy / 100
        exact = Interval(value=share, low=share, high=share)
        series.append(Series(name=f"{point.model}, paper", points=((point.tokens, exact),)))
    note = f"{TOKENS_SOURCE}: its OMR-7B is another checkpoint than its main table's." if printed else ""
    chart = draw_points(f"Accuracy against tokens, {benchmark}", series, "mean tokens of a response")
    return Figure(f"tokens-{benchmark}", benchmark, "Accuracy, with 95% intervals.", chart, note=note)
