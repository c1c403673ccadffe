"""Draws small charts as SVG: stacked bars over steps, dots with intervals, bars. Lines are in lines.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from launch.report.axes import (
    HEIGHT,
    LEFT,
    NUM_COLORS,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    draw_svg,
    draw_x_axis,
    draw_y_axis,
    format_number,
    step_ticks,
    value_scale,
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.value, self.low, self.high))):
            raise ValueError(f"an interval must be finite, not {self}")


def draw_stacked_bars(
    label: str, names: Sequence[str], bars: Sequence[tuple[int, Sequence[float]]], unit: str
) -> Markup:
    """Draws one bar per (step, a value per name), the first name at the bottom; many bars are averaged into 60."""
    bars = _merge_bars(bars, limit=60)
    x = Scale(low=-0.5, high=len(bars) - 0.5, start=LEFT + 4, end=RIGHT)
    y, ticks = value_scale([sum(values) for _, values in bars])
    width = max(1.0, min(40.0, 0.86 * (RIGHT - LEFT) / len(bars)))
    parts, hover = [draw_y_axis(y, ticks, RIGHT)], []
    for i, (step, values) in enumerate(bars):
        base = 0.0
        for color, value in enumerate(values):
            top, height = y(base + value), y(base) - y(base + value)
            box = f'x="{x(i) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.2f}"'
            parts.append(f'<rect class="c{color}" {box}/>')
            base += value
        texts = [f"{name} {format_number(value)} {unit}" for name, value in zip(names, values, strict=True)]
        hover.append([round(x(i), 1), f"step {step}", *reversed(texts)])
    places = {}
    for tick in step_ticks(bars[0][0], bars[-1][0]):
        places[next(i for i, (step, _) in enumerate(bars) if step >= tick or i == len(bars) - 1)] = tick
    parts.append(draw_x_axis([(x(i), tick) for i, tick in places.items()]))
    return draw_svg(label, "".join(parts), HEIGHT, hover)


def draw_intervals(label: str, rows: Sequence[tuple[str, Sequence[Interval | None]]]) -> Markup:
    """Draws a row per name with a dot and a 95% interval per series, all shares; the first row stands out."""
    num_series = max(len(intervals) for _, intervals in rows)
    row_height = 14 + 16 * num_series
    left = 16 + 7.0 * max(len(_shorten(name)) for name, _ in rows)
    bottom = TOP + row_height * len(rows) + 10
    x = Scale(low=0.0, high=1.0, start=left, end=WIDTH - 66)
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="grid" d="M{x(share):.1f} {TOP - 6}V{bottom}"/>')
        parts.append(f'<text class="tick middle" x="{x(share):.1f}" y="{bottom + 18}">{share:.0%}</text>')
    for i, (name, intervals) in enumerate(rows):
        middle = TOP + row_height * i + row_height / 2 + (8 if i else 0)
        strong = "" if i else " strong"
        parts.append(f'<text class="name{strong}" x="0" y="{middle + 4:.1f}">{escape(_shorten(name))}</text>')
        for color, interval in enumerate(intervals):
            height = middle + 16 * (color - (len(intervals) - 1) / 2)
            parts.append(_interval_marks(interval, color % NUM_COLORS, x, height, strong))
    rule = TOP + row_height + 4
    parts.append(f'<path class="grid" d="M0 {rule}H{WIDTH}"/>' if len(rows) > 1 else "")
    return draw_svg(label, "".join(parts), bottom + 28, [])


def draw_bars(label: str, bars: Sequence[tuple[str, float, str]]) -> Markup:
    """Draws a horizontal bar per (name, value from 0 on, text), with the text written at the bar's end."""
    left = 16 + 7.0 * max(len(_shorten(name)) for name, _, _ in bars)
    room = 16 + 7.0 * max(len(text) for _, _, text in bars)
    high = max(max(value for _, value, _ in bars), 1e-9)
    x = Scale(low=0.0, high=high, start=left, end=WIDTH - max(84.0, room))
    parts = []
    for i, (name, value, text) in enumerate(bars):
        y = TOP + 30 * i
        parts.append(f'<text class="name" x="0" y="{y + 12}">{escape(_shorten(name))}</text>')
        parts.append(
            f'<rect class="c0" x="{left}" y="{y}" width="{max(x(value) - left, 1):.1f}" height="16" rx="2"/>'
        )
        parts.append(f'<text class="name" x="{x(value) + 8:.1f}" y="{y + 12}">{escape(text)}</text>')
    return draw_svg(label, "".join(parts), TOP + 30 * len(bars), [])


def _merge_bars(bars: Sequence[tuple[int, Sequence[float]]], limit: int) -> list[tuple[int, list[float]]]:
    size = math.ceil(len(bars) / limit)
    chunks = [bars[i : i + size] for i in range(0, len(bars), size)]
    return [
        (c[0][0], [sum(column) / len(c) for column in zip(*(v for _, v in c), strict=True)]) for c in chunks
    ]


def _interval_marks(interval: Interval | None, color: int, x: Scale, height: float, strong: str) -> str:
    if interval is None:
        return ""
    span = f'<path class="span c{color}" d="M{x(interval.low):.1f} {height:.1f}H{x(interval.high):.1f}"/>'
    radius = 5.5 if strong else 4.5
    dot = f'<circle class="dot c{color}" cx="{x(interval.value):.1f}" cy="{height:.1f}" r="{radius}"/>'
    value = f"{interval.value:.1%}"
    text = f'<text class="end c{color}{strong}" x="{WIDTH - 2}" y="{height + 4:.1f}">{value}</text>'
    tip = f"{value}, 95% interval {interval.low:.1%} to {interval.high:.1%}"
    return f'<g class="interval"><title>{tip}</title>{span}{dot}{text}</g>'


def _shorten(name: str) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= 18 else name[:17] + "…"
