"""Draws small charts as SVG: lines over steps, stacked bars, dots with intervals, durations.

Colours are classes (c0, c1, ...) that the page's style sheet fills in for
light and dark; pixels are those of a 520 wide view box that the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from markupsafe import Markup

from data_pipeline.files import to_json

WIDTH, HEIGHT = 520, 236
TOP, BOTTOM, LEFT, RIGHT = 14, 208, 50, 506
NUM_COLORS = 5  # the style sheet has c0 to c4
MAX_POINTS = 300
"""Longer lines are thinned to about this many points; each bin keeps its lowest and highest."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named curve."""

    name: str
    points: tuple[tuple[int, float], ...]  # (step, value): ascending steps, finite values


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.value, self.low, self.high))):
            raise ValueError(f"an interval must be finite, not {self}")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps [low, high] to the pixels [start, end], by its logarithm when `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        bend: Callable[[float], float] = math.log10 if self.log else float
        share = (bend(value) - bend(self.low)) / (bend(self.high) - bend(self.low))
        return self.start + share * (self.end - self.start)


def draw_lines(
    label: str, lines: Sequence[Line], *, ceiling: float | None = None, log: bool = False
) -> Markup:
    """Draws faint raw values, a strong moving average and each line's name at its end.

    The axis starts at 0 and reaches `ceiling`; with `log`, positive values that span more than a factor of
    100 get a logarithmic one. At least one line must have a point.
    """
    lines = [line for line in lines if line.points]
    smoothed = [Line(name=line.name, points=smooth(line.points)) for line in lines]
    ends = [f"{line.name} {format_number(line.points[-1][1])}".strip() for line in smoothed]
    right = RIGHT - 7.2 * max(map(len, ends)) - 4
    x = _step_scale([step for line in lines for step, _ in line.points], right)
    y, ticks = _value_scale([value for line in lines for _, value in line.points], ceiling=ceiling, log=log)
    parts = [_y_axis(y, ticks, right), _x_axis([(x(step), step) for step in _step_ticks(x.low, x.high)])]
    for i, (raw, soft) in enumerate(zip(lines, smoothed, strict=True)):
        parts += [
            _raw_marks(raw, i, x, y),
            f'<path class="smooth c{i}" d="{_path(thin(soft.points), x, y)}"/>',
        ]
    heights = spread([y(line.points[-1][1]) for line in smoothed], gap=16, low=TOP, high=BOTTOM)
    for i, (end, height) in enumerate(zip(ends, heights, strict=True)):
        parts.append(f'<text class="end c{i}" x="{right + 8:.1f}" y="{height + 4:.1f}">{escape(end)}</text>')
    return _svg(label, "".join(parts), HEIGHT, _hover_rows(lines, smoothed, x))


def draw_stacked_bars(
    label: str, names: Sequence[str], bars: Sequence[tuple[int, Sequence[float]]], unit: str
) -> Markup:
    """Draws one bar per (step, a value per name), the first name at the bottom; many bars are averaged into 60."""
    bars = _merge_bars(bars, limit=60)
    x = Scale(low=-0.5, high=len(bars) - 0.5, start=LEFT + 4, end=RIGHT)
    y, ticks = _value_scale([sum(values) for _, values in bars])
    width = max(1.0, min(40.0, 0.86 * (RIGHT - LEFT) / len(bars)))
    parts, hover = [_y_axis(y, ticks, RIGHT)], []
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
    for tick in _step_ticks(bars[0][0], bars[-1][0]):
        places[next(i for i, (step, _) in enumerate(bars) if step >= tick or i == len(bars) - 1)] = tick
    parts.append(_x_axis([(x(i), tick) for i, tick in places.items()]))
    return _svg(label, "".join(parts), HEIGHT, hover)


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
    return _svg(label, "".join(parts), bottom + 28, [])


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
    return _svg(label, "".join(parts), TOP + 30 * len(bars), [])


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


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Returns multiples of 1, 2 or 5 times a power of ten that cover [low, high] in about `count` gaps."""
    # A constant gets a narrow axis, not a division by 0.
    span = max(high - low, 1e-6 * max(abs(low), abs(high)))
    span = span if span > 1e-200 else 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= span * 0.999)
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [i * gap for i in range(first, max(last, first + 1) + 1)]


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


def format_number(value: float) -> str:
    """Formats about three significant digits: 0.0123, 4.56, 789, 12.3k, 4.5e-6."""
    size = abs(value)
    if 0 < size < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Formats seconds: 0.42 s, 12 s, 3 min 05 s, 2 h 07 min."""
    if value < 60:
        places = 2 if value < 1 else 1 if value < 10 else 0
        return f"{value:.{places}f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _decayed_sums(values: Sequence[float], decay: float) -> list[tuple[float, float]]:
    """Returns per value the sum and the weight of it and all earlier ones, each fading by `decay` per place."""
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        out.append((total, weight))
    return out


def _svg(label: str, body: str, height: float, hover: list[list[str | float]]) -> Markup:
    rows = f" data-hover='{escape(to_json(hover, compact=True))}'" if hover else ""
    box = f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}"'
    return Markup(f'<svg {box} data-top="{TOP}" data-bottom="{BOTTOM}"{rows}>{body}</svg>')


def _step_scale(steps: Sequence[int], right: float) -> Scale:
    low, high = min(steps), max(steps)
    return Scale(low=low if low < high else low - 1, high=high, start=LEFT + 4, end=right)


def _value_scale(
    values: Sequence[float], *, ceiling: float | None = None, log: bool = False
) -> tuple[Scale, list[float]]:
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 100:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        ticks = [10.0**i for i in range(first, last + 1, max(1, (last - first) // 4))]
        return Scale(low=10.0**first, high=10.0**last, start=BOTTOM, end=TOP, log=True), ticks
    ticks = nice_ticks(min(0.0, low), high if ceiling is None else max(ceiling, high))
    return Scale(low=ticks[0], high=ticks[-1], start=BOTTOM, end=TOP), ticks


def _y_axis(y: Scale, ticks: Sequence[float], right: float) -> str:
    places = 0 if len(ticks) < 2 else max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    parts = []
    for i, tick in enumerate(ticks):
        plain = not y.log and places <= 4 and abs(ticks[-1]) < 1e4
        text = f"{tick:.{places}f}" if plain and tick else format_number(tick)
        kind = "axis" if i == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y(tick):.1f}H{right:.1f}"/>')
        parts.append(f'<text class="tick right" x="{LEFT - 8}" y="{y(tick) + 4:.1f}">{text}</text>')
    return "".join(parts)


def _step_ticks(low: float, high: float) -> list[int]:
    """Returns round steps within [low, high], at least one."""
    ticks = [int(tick) for tick in nice_ticks(low, high, 6) if low <= tick <= high and tick == int(tick)]
    return ticks or [int(low)]


def _x_axis(ticks: Sequence[tuple[float, int]]) -> str:
    """Draws ticks, given as (pixel, step), and the word `step` before them."""
    texts = [f'<text class="tick middle" x="{x:.1f}" y="{BOTTOM + 20}">{step}</text>' for x, step in ticks]
    return f'<text class="tick right" x="{LEFT - 14}" y="{BOTTOM + 20}">step</text>{"".join(texts)}'


def _raw_marks(line: Line, color: int, x: Scale, y: Scale) -> str:
    if len(line.points) > 150:
        return f'<path class="raw c{color}" d="{_path(thin(line.points), x, y)}"/>'
    dots = (f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.2"/>' for step, value in line.points)
    return f'<g class="dots c{color}">{"".join(dots)}</g>'


def _path(points: Sequence[tuple[int, float]], x: Scale, y: Scale) -> str:
    places = [f"{x(step):.1f} {y(value):.1f}" for step, value in points]
    return f"M{'L'.join(places)}" + ("h0" if len(places) == 1 else "")  # h0: a lone point shows as a dot


def _hover_rows(lines: Sequence[Line], smoothed: Sequence[Line], x: Scale) -> list[list[str | float]]:
    """Returns per step its pixel, its title and a text per line; the page's script shows the nearest."""
    raw, soft = [dict(line.points) for line in lines], [dict(line.points) for line in smoothed]
    rows: list[list[str | float]] = []
    for step in sorted({step for line in lines for step, _ in thin(line.points)}):
        row: list[str | float] = [round(x(step), 1), f"step {step}"]
        for line, values, means in zip(lines, raw, soft, strict=True):
            if step in values:
                numbers = f"{format_number(values[step])} (smoothed {format_number(means[step])})"
                row.append(f"{line.name} {numbers}".strip())
        rows.append(row)
    return rows


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
