"""Reads points and boxes from text, in time linear in its length.

A place is a list of numbers in brackets, a point of two, a box of four: (12, 34), {"bbox_2d": [1, 2, 3, 4.5]}. A box
may also be two points, its corners: (1, 2), (3, 4) and [[1, 2], [3, 4]].
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?+"
_NUMBERS = rf"{_NUMBER}(?:\s*+,\s*+{_NUMBER})*+"
# possessive: what was read is never read again, so that no text takes quadratic time
_BRACKETS = re.compile(rf"[(\[]\s*+({_NUMBERS})\s*+[)\]]")
_BARE = re.compile(rf"\s*+({_NUMBERS})\s*+")
_BETWEEN_CORNERS = re.compile(r"[\s,;]*+")


class Point(NamedTuple):
    """A point in pixels."""

    x: float
    y: float


class Box(NamedTuple):
    """A box in pixels: its left top and its right bottom corner, which belong to it."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Returns the area; 0 where the corners are in the wrong order."""
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def holds(self, point: Point) -> bool:
        """Returns True if the point is in the box or on its edge."""
        return self.left <= point.x <= self.right and self.top <= point.y <= self.bottom

    def intersect(self, other: Box) -> Box:
        """Returns the box of what both share; its area is 0 where that is nothing."""
        return Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        )


def read_points(text: str) -> list[Point]:
    """Returns the points in a text, in order; corners of boxes count, other lists of numbers do not."""
    return [Point(*numbers) for numbers, _ in _read_lists(text) if len(numbers) == 2]


def read_place(text: str) -> Point | Box | None:
    """Returns the one point or box that a text names; None where it names none, or different ones.

    Numbers without brackets count when there is nothing else: 12, 34.
    """
    if bare := _BARE.fullmatch(text):
        return _to_place(_to_numbers(bare[1]))
    lists = _read_lists(text)
    if [len(numbers) for numbers, _ in lists] == [2, 2] and lists[0][0] != lists[1][0]:
        (first, (_, end)), (second, (start, _)) = lists
        return Box(*first, *second) if _are_corners(text[end:start]) else None
    places = {_to_place(numbers) for numbers, _ in lists}
    return places.pop() if len(places) == 1 else None


def _are_corners(between: str) -> bool:
    return bool(_BETWEEN_CORNERS.fullmatch(between))


def _to_place(numbers: tuple[float, ...]) -> Point | Box | None:
    return {2: Point, 4: Box}[len(numbers)](*numbers) if len(numbers) in (2, 4) else None


def _read_lists(text: str) -> list[tuple[tuple[float, ...], tuple[int, int]]]:
    """Returns the lists of numbers in brackets, and where each begins and ends."""
    return [(_to_numbers(found[1]), found.span()) for found in _BRACKETS.finditer(text)]


def _to_numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))
