"""Draws curves over steps: faint raw values or a band, and a strong smoothed line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from types import MappingProxyType

from markupsafe import Markup

from launch.report.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Scale,
    draw_svg,
    draw_x_axis,
    draw_y_axis,
    format_number,
    step_scale,
    step_ticks,
    value_scale,
)

MAX_POINTS = 300
"""Longer lines are thinned to about this many points; each bin keeps its lowest and highest."""


LINE_COLORS = (0, 1, 2, 5)
"""Colours of lines: the style sheet's classes of four that differ also for readers with a colour deficiency."""
MAX_LINES = 2 * len(LINE_COLORS)
"""Lines of one chart that can be told apart: each colour once whole and once dashed."""
MAX_RAW = 3
"""Lines up to which a chart shows the raw values, too."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named curve. One with a band, or without noise, is drawn as it is; others are smoothed."""

    name: str
    points: tuple[tuple[int, float], ...]  # (step, value): ascending steps, finite values
    band: tuple[tuple[int, float, float], ...] = ()  # (step, low, high)
    place: int | None = None  # of its style; by default its own among the lines
    raw: tuple[tuple[int, float], ...] = ()  # what the points are means of; by default the points
    is_exact: bool = False  # without noise: drawn as it is, too

    @property
    def faint(self) -> tuple[tuple[int, float], ...]:
        """What is drawn faintly behind the smoothed line."""
        return self.raw or self.points


def line_style(place: int) -> str:
    """Returns the classes of the line at this place."""
    dashed = " dashed" if place >= len(LINE_COLORS) else ""
    return f"c{LINE_COLORS[place % len(LINE_COLORS)]}{dashed}"


def draw_lines(
    label: str,
    lines: Sequence[Line],
    *,
    ceiling: float | None = None,
    log: bool = False,
    names: bool = True,
    limits: Mapping[str, float] = MappingProxyType({}),
) -> Markup:
    """Draws faint raw values or a band, a strong moving average, and name and value at each line's end.

    The axis holds 0 and reaches `ceiling`; with `log`, positive values that span more than a factor of
    100 get a logarithmic one. At least one line must have a point. Without `names` the ends have values alone: the page
    has a legend. `limits` are values by their names, which get lines across.
    """
    styles = {id(line): line_style(i if line.place is None else line.place) for i, line in enumerate(lines)}
    lines = [line for line in lines if line.points]
    drawn = [
        line if line.band or line.is_exact else replace(line, points=smooth(line.points)) for line in lines
    ]
    ends = [f"{line.name if names else ''} {format_number(line.points[-1][1])}".strip() for line in drawn]
    right = RIGHT - 7.2 * max(map(len, ends)) - 4
    x = step_scale([step for line in lines for step, _ in line.points], right)
    values = [value for line in drawn for _, value in line.points]
    values += [value for line in lines if len(lines) <= MAX_RAW for _, value in line.faint]
    values += [value for line in lines for _, low, high in line.band for value in (low, high)]
    y, ticks = value_scale([*values, *limits.values()], ceiling=ceiling, log=log)
    parts = [
        draw_y_axis(y, ticks, right),
        draw_x_axis([(x(step), step) for step in step_ticks(x.low, x.high)]),
        *(_limit_marks(name, y(value), right) for name, value in limits.items()),
    ]
    for raw, soft in zip(lines, drawn, strict=True):
        style = styles[id(raw)]
        if raw.band:
            parts.append(f'<path class="band {style}" d="{_outline(raw.band, x, y)}"/>')
        elif len(lines) <= MAX_RAW:
            parts.append(_raw_marks(raw, style, x, y))
        parts.append(f'<path class="smooth {style}" d="{_path(thin(soft.points), x, y)}"/>')
    heights = spread([y(line.points[-1][1]) for line in drawn], gap=16, low=TOP, high=BOTTOM)
    for line, end, height in zip(lines, ends, heights, strict=True):
        text = f'<text class="end {styles[id(line)]}" x="{right + 8:.1f}" y="{height + 4:.1f}">'
        parts.append(f"{text}{escape(end)}</text>")
    return draw_svg(label, "".join(parts), HEIGHT, _hover_rows(lines, drawn, x))


def smooth(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Returns an exponential moving average, weights halving every thirtieth of the points.

    It looks as far ahead as there is to look back, so that it does not lag; its last value is the usual one.
    """
    values = [value for _, value in points]
    decay = 0.5 ** (1 / max(1.0, min(40.0, len(points) / 30)))
    past = _decayed_sums(values, decay)
    future = [*_decayed_sums(values[::-1], decay)[::-1], (0.0, 0.0)]
    out = []
    for i, (step, value) in enumerate(points):
        far, far_weight = future[min(2 * i + 1, len(points))]  # further ahead than the start lies back
        fade = decay ** (i + 1)
        total = past[i][0] + future[i][0] - fade * far - value
        out.append((step, total / (past[i][1] + future[i][1] - fade * far_weight - 1)))
    return tuple(out)


def thin(points: Sequence[tuple[int, float]], limit: int = MAX_POINTS) -> list[tuple[int, float]]:
    """Returns at most about `limit` points: ends, and each bin's lowest and highest, so that no spike is lost."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(2 * len(points) / limit)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        values = points[start : start + size]
        kept |= {min(values, key=lambda p: p[1]), max(values, key=lambda p: p[1])}
    return sorted(kept)


def spread(heights: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Moves labels apart to at least `gap`, in their order, within [low, high] when they fit."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    limit = high
    for i in reversed(order):
        placed[i] = max(low, min(placed[i], limit))
        limit = placed[i] - gap
    return placed


def _decayed_sums(values: Sequence[float], decay: float) -> list[tuple[float, float]]:
    """Returns per value the sum and the weight of it and all earlier ones, each fading by `decay` per place."""
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        out.append((total, weight))
    return out


def _limit_marks(name: str, height: float, right: float) -> str:
    text = f'<text class="tick" x="{LEFT + 6}" y="{height - 4:.1f}">{escape(name)}</text>'
    return f'<path class="limit" d="M{LEFT} {height:.1f}H{right:.1f}"/>{text}'


def _raw_marks(line: Line, style: str, x: Scale, y: Scale) -> str:
    style = style.removesuffix(" dashed")
    if len(line.faint) > 150:
        return f'<path class="raw {style}" d="{_path(thin(line.faint), x, y)}"/>'
    dots = (f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.2"/>' for step, value in line.faint)
    return f'<g class="dots {style}">{"".join(dots)}</g>'


def _outline(band: Sequence[tuple[int, float, float]], x: Scale, y: Scale) -> str:
    """Returns the path around a band: along its upper side and back along the lower one."""
    upper = thin([(step, high) for step, _, high in band])
    lower = thin([(step, low) for step, low, _ in band])
    return _path([*upper, *reversed(lower)], x, y) + "Z"


def _path(points: Sequence[tuple[int, float]], x: Scale, y: Scale) -> str:
    places = [f"{x(step):.1f} {y(value):.1f}" for step, value in points]
    return f"M{'L'.join(places)}" + ("h0" if len(places) == 1 else "")  # h0: a lone point shows as a dot


def _hover_rows(lines: Sequence[Line], drawn: Sequence[Line], x: Scale) -> list[list[str | float]]:
    """Returns per step its pixel, its title and a text per line; the page's script shows the nearest."""
    shown = sorted({step for line in lines for step, _ in thin(line.points)})
    texts = [_hover_texts(line, soft, set(shown)) for line, soft in zip(lines, drawn, strict=True)]
    rows: list[list[str | float]] = []
    for step in shown:
        rows.append([round(x(step), 1), f"step {step}", *(each[step] for each in texts if step in each)])
    return rows


def _hover_texts(line: Line, drawn: Line, shown: set[int]) -> dict[int, str]:
    band = {
        step: f"{format_number(low)} to {format_number(high)}"
        for step, low, high in line.band
        if step in shown
    }
    soft = {step: f"smoothed {format_number(value)}" for step, value in drawn.points if step in shown}
    return {
        step: f"{line.name} {format_number(value)} ({band.get(step) or soft[step]})".strip()
        for step, value in line.points
        if step in shown
    }
