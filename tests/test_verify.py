"""The answer checker against the published reward, row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.verify import (
    check_answer,
    check_text,
    extract_answer,
    format_score,
    is_equal_math,
    needs_math,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "released_reward.json").read_text())
MEGA = 1_000_000


def tagged(answer: str) -> str:
    return f"<think>r</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    "row", GOLDEN["published"] + GOLDEN["further"], ids=lambda row: f"{row['response']}={row['answer']}"
)
def test_reproduces_the_released_reward(row):
    verdict = check_answer(row["response"], row["answer"])
    assert (verdict.accuracy, verdict.format) == (row["accuracy"], row["format"])
    assert (verdict.decided_by == "none") == (verdict.accuracy == 0)


@pytest.mark.parametrize(
    ("response", "answer", "decided_by"),
    [
        (tagged("42"), "42", "exact"),
        (tagged("B."), "B", "choice"),
        (tagged("1/2"), "0.5", "math"),
        (tagged("7"), "8", "none"),
    ],
)
def test_says_what_decided(response, answer, decided_by):
    assert check_answer(response, answer).decided_by == decided_by


def test_extracts_tag_then_box_then_final_number():
    box, number = r"\boxed{2}", "it is 3."
    assert extract_answer(f"<answer> 1. </answer>{box}\n{number}") == "1"
    assert extract_answer(f"{box}\n{number}") == "2"
    assert extract_answer(number) == "3"
    assert extract_answer("nothing") == ""


INTEGERS = st.integers(-(10**14), 10**14)


@given(INTEGERS, st.one_of(INTEGERS, st.integers(-20, 20)))
def test_plain_integers_that_differ_are_never_equal_to_math_verify(a, b):
    if a == b:
        return
    assert not needs_math(check_text(tagged(str(a)), str(b)), str(b))
    assert not is_equal_math(str(a), str(b))


@pytest.mark.parametrize("letter", "ABCDEFGH")
def test_a_wrong_choice_is_not_asked_of_math_verify(letter):
    wrong = chr(ord(letter) + 1)
    assert not needs_math(check_text(tagged(wrong), letter), letter)
    assert not is_equal_math(wrong, letter)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "<think>" + "</think><answer>" * (MEGA // 16),
        "<answer>" * (MEGA // 8),
        r"\boxed{" * (MEGA // 7),
        "{}" * MEGA,
        "1 " * MEGA,
        "1" + " " * MEGA + "x",
        "1" * MEGA + "x",
        "\n" * MEGA + "7",
        "the answer " * (MEGA // 11) + "b",
    ],
    ids=lambda text: text[:16],
)
def test_text_checks_are_linear_on_megabytes(text):
    # a quadratic check of a megabyte would take hours, not the minute this test has
    check_text(text, "B")
    check_text(tagged(text), "B")
    assert format_score(text) in (0.0, 0.8)
