"""Axes, frames and numbers that all charts share.

Colours are classes (c0, c1, ...) that the page's style sheet fills in for
light and dark; pixels are those of a 520 wide view box that the page scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from data_pipeline.files import to_json

WIDTH, HEIGHT = 520, 236
TOP, BOTTOM, LEFT, RIGHT = 14, 208, 50, 506
NUM_COLORS = 6  # of bars and dots: the style sheet's c0 to c5


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


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Returns multiples of 1, 2 or 5 times a power of ten that cover [low, high] in about `count` gaps."""
    # A constant gets a narrow axis, not a division by 0.
    span = max(high - low, 1e-6 * max(abs(low), abs(high)))
    span = span if span > 1e-200 else 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= span * 0.999)
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [i * gap for i in range(first, max(last, first + 1) + 1)]


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


def format_span(seconds: float) -> str:
    """Formats seconds in one unit, for large type: 42.0 s, 3.1 min, 2.2 h."""
    units = ((3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((unit for unit in units if seconds >= 2 * unit[0]), units[-1])
    return f"{seconds / size:.1f} {unit}"


def draw_svg(label: str, body: str, height: float, hover: list[list[str | float]]) -> Markup:
    rows = f" data-hover='{escape(to_json(hover, compact=True))}'" if hover else ""
    box = f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}"'
    return Markup(f'<svg {box} data-top="{TOP}" data-bottom="{BOTTOM}"{rows}>{body}</svg>')


def step_scale(steps: Sequence[int], right: float) -> Scale:
    low, high = min(steps), max(steps)
    return Scale(low=low if low < high else low - 1, high=high, start=LEFT + 4, end=right)


def value_scale(
    values: Sequence[float], *, ceiling: float | None = None, log: bool = False
) -> tuple[Scale, list[float]]:
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 100:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        ticks = [10.0**i for i in range(first, last + 1, max(1, (last - first) // 4))]
        return Scale(low=10.0**first, high=10.0**last, start=BOTTOM, end=TOP, log=True), ticks
    ticks = nice_ticks(min(0.0, low), max(ceiling or 0.0, high))
    return Scale(low=ticks[0], high=ticks[-1], start=BOTTOM, end=TOP), ticks


def draw_y_axis(y: Scale, ticks: Sequence[float], right: float) -> str:
    places = 0 if len(ticks) < 2 else max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    parts = []
    for i, tick in enumerate(ticks):
        plain = not y.log and places <= 4 and abs(ticks[-1]) < 1e4
        text = f"{tick:.{places}f}" if plain and tick else format_number(tick)
        kind = "axis" if i == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y(tick):.1f}H{right:.1f}"/>')
        parts.append(f'<text class="tick right" x="{LEFT - 8}" y="{y(tick) + 4:.1f}">{text}</text>')
    return "".join(parts)


def step_ticks(low: float, high: float) -> list[int]:
    """Returns round steps within [low, high], at least one."""
    ticks = [int(tick) for tick in nice_ticks(low, high, 6) if low <= tick <= high and tick == int(tick)]
    return ticks or [int(low)]


def draw_x_axis(ticks: Sequence[tuple[float, int]]) -> str:
    """Draws ticks, given as (pixel, step), and the word `step` before them."""
    texts = [f'<text class="tick middle" x="{x:.1f}" y="{BOTTOM + 20}">{step}</text>' for x, step in ticks]
    return f'<text class="tick right" x="{LEFT - 14}" y="{BOTTOM + 20}">step</text>{"".join(texts)}'
