"""Reward functions against other implementations: DAPO's penalty, ViGoRL's points and format, IoU by counted pixels."""

from __future__ import annotations

import ast
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.rewards.coordinates import Box, Point, read_place, read_points
from rl.rewards.functions import overlong
from rl.rewards.grounded import box_iou, grounded_format, point_in_box
from tests.helpers.rewards import make_input


@given(st.integers(1, 200), st.integers(1, 100), st.integers(0, 400))
def test_overlong_is_the_papers_penalty(limit: int, buffer: int, length: int):
    """Case by case as in DAPO's equation 13, and as verl computes it."""
    value = overlong(make_input(response_len=length, max_tokens=limit), buffer=buffer)
    if length <= limit - buffer:
        assert value == 0 and str(value) == "0.0"
    elif length <= limit:
        assert value == pytest.approx((limit - buffer - length) / buffer)
    else:
        assert value == -1
    verl = min(-(length - (limit - buffer)) / buffer * 1.0, 0)
    assert value == pytest.approx(max(-1, verl))


BOX = "(10, 20, 30, 40)"


def vigorl(response: str, answer: str) -> tuple[float, float]:
    """Returns point_in_box and grounded_format by the rules of ViGoRL's reward, with regular expressions and ast."""
    found = re.search(r"<answer>(.*?)</answer>", response)
    try:
        x, y = ast.literal_eval(found[1].strip() if found else "")
        left, top, right, bottom = ast.literal_eval(answer)
        is_inside = left <= x <= right and top <= y <= bottom
    except (ValueError, SyntaxError, TypeError):
        return 0.0, 0.0
    thought = re.search(r"<think>(.*?)</think>", response, re.DOTALL)
    form = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", response, re.DOTALL)
    cited = re.findall(r"\((\d+)\s*,\s*(\d+)\)", thought[1]) if thought else []
    return float(is_inside), float(bool(form and cited))


@pytest.mark.parametrize(
    "response",
    [
        "<think>At (12, 30) is a cup.</think><answer>(12, 30)</answer>",
        "<think>At (12,30) is a cup,\nat (50 , 60) a plate.</think>\n\n<answer>(12,30)</answer>",
        "<think>A cup.</think><answer>(10, 40)</answer>",  # names no place, but points to the edge
        "<think>At (12, 30).</think><answer>(9, 30)</answer>",
        "<think>At (12, 30).</think><answer>(12, 41)</answer>",
        "<think>At (12, 30).</think><answer>a cup</answer>",
        "<think>At (12, 30).</think>so<answer>(12, 30)</answer>",
        "<think>At (12, 30).<answer>(12, 30)</answer>",
        "<answer>(12, 30)</answer>",
        "",
    ],
)
def test_grounded_reward_is_vigorls(response: str):
    asked = make_input(response, BOX)
    assert (point_in_box(asked), grounded_format(asked)) == vigorl(response, BOX)


@pytest.mark.parametrize(
    ("response", "place", "form"),
    [
        ("<think>at [12, 30]</think><answer>[12, 30]</answer>", 1, 1),  # other brackets
        ('<think>(1, 2)</think><answer>{"point_2d": [12.5, 30]}</answer>', 1, 1),
        ("<think>(1, 2)</think><answer>12, 30</answer>", 1, 1),
        ("<think>(1, 2)</think><answer>(12, 30) or (99, 99)</answer>", 0, 0),  # hedges
        ("<think>(1, 2)</think><answer>The cup at (12, 30), so (12, 30)</answer>", 1, 1),
        ("<think>(1, 2, 3)</think><answer>(12, 30)</answer>", 1, 0),  # three numbers are no point
        ("<think>(-1, 2)</think><answer>(12, 30)</answer>", 1, 0),  # outside of any image
        ("<think>(1, 2)</think><think>b</think><answer>(12, 30)</answer>", 1, 0),
        ("<think>(1, 2)</think><answer>(12, 30)</answer> done", 1, 0),
        (" <think>(1, 2)</think><answer>(12, 30)</answer>\n", 1, 1),  # spaces around are none of the answer's
        ("<think>(1, 2)</think><answer></answer>", 0, 0),
        ("<think>(1, 2)</think><answer>(11, 21, 29, 39)</answer>", 0, 1),  # a box is no point
    ],
)
def test_places_are_read_in_the_forms_that_models_write(response: str, place: float, form: float):
    asked = make_input(response, BOX)
    assert (point_in_box(asked), grounded_format(asked)) == (place, form)


def test_form_of_an_answer_in_words_only_needs_the_thought_to_name_a_point():
    assert grounded_format(make_input("<think>(1, 2) is red</think><answer>red</answer>", "red")) == 1
    assert grounded_format(make_input("<think>it is red</think><answer>red</answer>", "red")) == 0
    assert grounded_format(make_input("<think>(1, 2) is red</think><answer> </answer>", "red")) == 0


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 12)] * 4), st.tuples(*[st.integers(0, 12)] * 4))
def test_iou_equals_counted_pixels(one: tuple[int, ...], other: tuple[int, ...]):
    """Boxes with corners on pixels, painted and counted; malformed ones share nothing."""

    def paint(box: tuple[int, ...]) -> np.ndarray:
        left, top, right, bottom = box
        image = np.zeros((12, 12), bool)
        image[top:bottom, left:right] = True
        return image

    reference, answer = paint(one), paint(other)
    if not reference.any():
        with pytest.raises(ValueError, match=r"is no box; write \(left, top, right, bottom\)"):
            box_iou(make_input(f"<answer>{other}</answer>", str(one)))
        return
    value = box_iou(make_input(f"<answer>{list(other)}</answer>", str(one)))
    assert value == pytest.approx((reference & answer).sum() / (reference | answer).sum())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("(1, 2)", Point(1, 2)),
        ("1,2,3,4", Box(1, 2, 3, 4)),
        ("(1, 2), (3, 4)", Box(1, 2, 3, 4)),
        ("[[1, 2], [3, 4.25]]", Box(1, 2, 3, 4.25)),
        ("<box>(1,2),(3,4)</box>", Box(1, 2, 3, 4)),
        ("(1, 2) and (3, 4)", None),
        ("(1, 2) (1, 2)", Point(1, 2)),
        ("(1, 2) [1, 2, 3, 4]", None),
        ("(1, 2, 3)", None),
        ("(1; 2)", None),
        ("1", None),
        ("(１, ２)", None),  # digits of other scripts
        ("(1234567890, 1)", None),
        ("", None),
    ],
)
def test_a_place_is_one_point_or_one_box(text: str, place: Point | Box | None):
    assert read_place(text) == place


def test_points_of_a_text_are_in_order_and_lists_of_other_lengths_are_none():
    text = "(1, 2) then (3,4,5), [6 , 7], f(8, 9) and (10, 11"
    assert read_points(text) == [Point(1, 2), Point(6, 7), Point(8, 9)]


HOSTILE = [
    "(",
    "(1",
    "(1,",
    "(1 ",
    "1,",
    " ",
    "(1, 2",
    "[(",
    "1",
    "(1,2)",
    "<think>",
    "</answer>",
    "(1, 2)</think>",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_reading_takes_linear_time(piece: str):
    """Texts of one length to a factor of 8 in length; quadratic time would be 64 times as long."""

    def seconds(count: int) -> float:
        text = piece * count
        asked = make_input("x", BOX)
        object.__setattr__(asked, "response", f"<think>{text}")
        started = time.process_time()
        read_points(text), read_place(text), grounded_format(asked)
        return time.process_time() - started

    short, long = (min(seconds(count) for _ in range(3)) for count in (5_000, 40_000))
    assert long < 24 * short + 0.01
