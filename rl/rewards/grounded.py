"""Reward functions of grounded reasoning, where thoughts and answers name places in the image (ViGoRL, 2505.23678).

ViGoRL's reward is 0.5 point_in_box + 0.5 grounded_format. Reference and response give pixels of the same image; for
Qwen2.5-VL that is the image after it was resized for the model. Qwen3-VL names thousandths of its sides.
"""

from __future__ import annotations

import re

from rl.rewards.coordinates import Box, Point, read_place, read_points
from rl.rewards.inputs import RewardInput

_TAGS = re.compile(r"</?(?:think|answer)>")
_GRAMMAR = ["<think>", "</think>", "<answer>", "</answer>"]


def point_in_box(given: RewardInput) -> float:
    """Returns 1 where the answer is one point, and it is in the box of the reference or on its edge; else 0.

    Raises:
        ValueError: the reference is no box.
    """
    box, place = _read_reference(given), read_place(given.verdict.extracted)
    return float(isinstance(place, Point) and box.holds(place))


def box_iou(given: RewardInput) -> float:
    """Returns the area that the answer's box shares with the reference's, over that of both; 0 without one box.

    Raises:
        ValueError: the reference is no box.
    """
    box, place = _read_reference(given), read_place(given.verdict.extracted)
    if not isinstance(place, Box) or not place.area:
        return 0.0
    shared = box.intersect(place).area
    return shared / (box.area + place.area - shared)


def grounded_format(given: RewardInput) -> float:
    """Returns 1 for one thought that names a point of the image, then one answer, and nothing else; else 0.

    The answer holds some text; where the reference is a box, it holds one point or box.
    """
    text = given.response.strip()
    marks = list(_TAGS.finditer(text))
    if [mark.group() for mark in marks] != _GRAMMAR:
        return 0.0
    opened, thought_end, answer_start, closed = marks
    if opened.start() or closed.end() < len(text) or text[thought_end.end() : answer_start.start()].strip():
        return 0.0
    thought = text[opened.end() : thought_end.start()]
    answer = text[answer_start.end() : closed.start()].strip()
    needs_place = isinstance(read_place(given.prompt.answer), Box)
    has_answer = read_place(answer) is not None if needs_place else bool(answer)
    names_point = any(point.x >= 0 and point.y >= 0 for point in read_points(thought))
    return float(has_answer and names_point)


def _read_reference(given: RewardInput) -> Box:
    place = read_place(given.prompt.answer)
    if not isinstance(place, Box) or not place.area:
        raise ValueError(
            f"the reference {given.prompt.answer[:100]!r} is no box; write (left, top, right, bottom) in pixels"
        )
    return place
