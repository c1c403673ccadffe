"""Draws how engines spend their time in each mode, as an SVG that a page of docs/ shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 220, 590, 26, 56
PARTS = (
    ("decoding", "decode", "#2a6f97"),
    ("computing prompts", "compute prompts, and responses again after an update", "#8fbcd4"),
    ("taking weights", "take weights", "#c9b79c"),
)
STYLE = "font: 13px system-ui, sans-serif; fill: #222"

Panel = tuple[str, Sequence[tuple[str, Mapping[str, float]]]]
"""A title, and rows with name and measures of `measure`."""


def draw_utilisation(panels: Sequence[Panel]) -> str:
    """Returns the SVG: a bar per row whose length is the share of the engines' time, and the seconds of a step."""
    parts, y = [_draw_legend()], TOP
    for title, rows in panels:
        parts.append(_text(0, y, title, weight="600"))
        parts.append(_text(RIGHT + 12, y, "seconds a step"))
        y += 10
        for name, values in rows:
            parts.append(_draw_row(y, name, values))
            y += ROW
        y += 30
    height = y - 14
    axis = "".join(
        f'<path d="M{x:.0f} 36V{height - 20}" stroke="#ddd"/>{_text(x, 32, f"{share:.0%}", anchor="middle")}'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        for x in [LEFT + share * (RIGHT - LEFT)]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" style="{STYLE}" role="img" '
        'aria-label="Shares of the engines\' time by mode"><rect width="100%" height="100%" fill="#fff"/>'
        f"{axis}{''.join(parts)}</svg>\n"
    )


def _draw_legend() -> str:
    parts, x = [], 0
    for _, label, color in PARTS:
        parts.append(f'<rect x="{x}" y="3" width="12" height="12" fill="{color}"/>{_text(x + 18, 14, label)}')
        x += 40 + 7 * len(label)
    return "".join(parts)


def _draw_row(y: float, name: str, values: Mapping[str, float]) -> str:
    parts, x = [_text(LEFT - 8, y + 14, name, anchor="end")], float(LEFT)
    for key, _, color in PARTS:
        width = values[key] * (RIGHT - LEFT)
        parts.append(f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="16" fill="{color}"/>')
        x += width
    parts.append(_text(RIGHT + 12, y + 14, f"{values['seconds a step']:.0f}"))
    return "".join(parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )
