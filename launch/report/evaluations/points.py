"""Draws accuracy over tokens: a dot with its interval for each evaluation, joined where one has several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from launch.report.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NUM_COLORS,
    RIGHT,
    TOP,
    Scale,
    draw_svg,
    draw_y_axis,
    format_number,
    nice_ticks,
    value_scale,
)
from launch.report.charts import Interval
from launch.report.lines import spread

LOG_FROM = 8.0
"""Ratio of the largest to the smallest number of tokens from which on the axis is logarithmic."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Dots of one name: (tokens above 0, accuracy), ascending. One without a width has no interval."""

    name: str
    points: tuple[tuple[float, Interval], ...]


def draw_points(label: str, series: Sequence[Series], unit: str) -> Markup:
    """Draws the dots of each series in its colour, with its name at the last; `unit` names the horizontal axis."""
    series = [each for each in series if len(each.points)]
    places = [x for each in series for x, _ in each.points]
    y, y_ticks = value_scale([interval.high for each in series for _, interval in each.points])
    x, x_ticks = _horizontal(places)
    parts = [draw_y_axis(y, y_ticks, RIGHT), _draw_ticks(x, x_ticks, unit)]
    ends = [
        y(list(each.points)[-1][1].value) - (14 if len(each.points) > 1 else 0) for each in series
    ]  # above a line
    heights = spread(ends, gap=16, low=TOP, high=BOTTOM)
    for number, (each, height) in enumerate(zip(series, heights, strict=True)):
        color = f"c{number % NUM_COLORS}"
        if len(each.points) > 1:
            line = "L".join(f"{x(place):.1f} {y(interval.value):.1f}" for place, interval in each.points)
            parts.append(f'<path class="smooth {color}" d="M{line}"/>')
        parts += [_draw_dot(each.name, unit, place, interval, color, x, y) for place, interval in each.points]
        end = x(max(place for place, _ in each.points))
        is_left = end > (LEFT + RIGHT) / 2
        anchor = "right" if is_left else ""
        parts.append(
            f'<text class="end {color} {anchor}" x="{end + (-9 if is_left else 9):.1f}" y="{height + 4:.1f}">'
            f"{escape(each.name)}</text>"
        )
    return draw_svg(label, "".join(parts), HEIGHT + 8, [])


def _horizontal(places: Sequence[float]) -> tuple[Scale, list[float]]:
    """Returns the axis from 0 on, or a logarithmic one with a tick at every doubling."""
    low, high = min(places), max(places)
    if low > 0 and high / low >= LOG_FROM:
        ticks = [low * 2**power for power in range(64) if low * 2**power <= high * 1.001]
        every = math.ceil(len(ticks) / 7)
        ticks = ticks[::every]
        return Scale(low=low, high=high, start=LEFT + 12, end=RIGHT - 12, log=True), ticks
    ticks = nice_ticks(0.0, max(high, 1.0), 5)
    return Scale(low=0.0, high=ticks[-1], start=LEFT, end=RIGHT - 12), ticks


def _draw_ticks(x: Scale, ticks: Sequence[float], unit: str) -> str:
    texts = [
        f'<text class="tick middle" x="{x(tick):.1f}" y="{BOTTOM + 18}">{format_number(tick)}</text>'
        for tick in ticks
    ]
    name = f'<text class="tick right" x="{RIGHT}" y="{BOTTOM + 34}">{escape(unit)}</text>'
    return "".join(texts) + name


def _draw_dot(name: str, unit: str, place: float, interval: Interval, color: str, x: Scale, y: Scale) -> str:
    tip = f"{name}: {interval.value:.1%} at {format_number(place)} {unit}"
    span = ""
    if interval.low < interval.high:
        tip += f", 95% interval {interval.low:.1%} to {interval.high:.1%}"
        span = (
            f'<path class="span {color}" d="M{x(place):.1f} {y(interval.low):.1f}V{y(interval.high):.1f}"/>'
        )
    dot = f'<circle class="dot {color}" cx="{x(place):.1f}" cy="{y(interval.value):.1f}" r="4.5"/>'
    return f"<g><title>{escape(tip)}</title>{span}{dot}</g>"
