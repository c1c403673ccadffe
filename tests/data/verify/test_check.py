"""The answer checker: the released mode against the published reward, row by row; both modes on hostile text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.verify.check import check_answer, check_text, is_equal_math, needs_math
from data_pipeline.verify.released import extract_answer

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "released_reward.json").read_text())
MEGA = 1_000_000
MODES = ("strict", "released")


def tagged(answer: str) -> str:
    return f"<think>r</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    "row", GOLDEN["published"] + GOLDEN["further"], ids=lambda row: f"{row['response']}={row['answer']}"
)
def test_reproduces_the_released_reward(row):
    verdict = check_answer(row["response"], row["answer"], "released")
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
    assert check_answer(response, answer, "released").decided_by == decided_by


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
    for mode in MODES:
        assert check_text(tagged(str(a)), str(b), mode).decided_by == "none"
        assert not is_equal_math(str(a), str(b), mode)


@pytest.mark.parametrize("letter", "ABCDEFGH")
def test_a_wrong_choice_is_not_asked_of_math_verify(letter):
    wrong = chr(ord(letter) + 1)
    assert not needs_math(check_text(tagged(wrong), letter, "released"))
    assert not is_equal_math(wrong, letter, "released")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "text",
    [
        "<think>" + "</think><answer>" * (MEGA // 16),
        "<think>" * (MEGA // 7),
        "</think>" * (MEGA // 8),
        "<answer>" * (MEGA // 8),
        "<answer></answer>" * (MEGA // 17) + "<answer>",
        r"\boxed{" * (MEGA // 7),
        "x\n" + "{}" * MEGA,
        "1 " * MEGA,
        "1" + " " * MEGA + "x",
        "1" * MEGA + "x",
        "\n" * MEGA + "7",
        "<|im_end|> " * (MEGA // 11),
        "the answer " * (MEGA // 11) + "b",
        " is = : " * (MEGA // 8) + "b.",
    ],
    ids=lambda text: text[:16],
)
def test_text_checks_are_linear_on_megabytes(text, mode):
    # a quadratic check of a megabyte would take hours, not the minute this test has
    assert check_text(text, "B", mode).accuracy in (0.0, 1.0)
    assert check_text(tagged(text), "B", mode).decided_by in ("none", "choice")
    assert check_text(tagged("7"), text + "x", mode).decided_by in ("none", "undecided")


@pytest.mark.timeout(60)
def test_strict_rules_are_cheap_on_the_longest_texts_they_compare():
    pieces = [
        "(",
        ")",
        "{",
        "}",
        "1",
        "1,",
        " or ",
        " and ",
        "A",
        "(a) ",
        "\\pm",
        "\\sqrt(",
        "\\boxed{",
        "x=",
        "/",
    ]
    pieces += [
        "-",
        "$",
        "m ",
        "%",
        ":",
        "e9",
        "^9",
        "\\frac{1}{",
        "\\text{",
        "the ",
        " is ",
        "1 to ",
        "\\{",
        ". ",
        "[",
    ]
    for first in pieces:
        for second in pieces:
            text = ((first + second) * 500)[:1000]
            check_text(tagged(text), text[:-1])
            check_text(tagged(text), "x = 3, y = 4")
            check_text(tagged("3"), text)


@given(st.text(max_size=200), st.text(max_size=60))
def test_text_checks_never_raise(response, answer):
    for mode in MODES:
        assert check_text(response, answer, mode).accuracy in (0.0, 1.0)
        assert check_text(tagged(response), answer, mode).accuracy in (0.0, 1.0)


SIGNS = st.lists(st.sampled_from(list("0123456789.,:;/%$()[]{}^_=-+xyABCab ") + [
    "\\frac", "{1}", "\\pm", "\\sqrt", " and ", " or ", "\\text{", "\\boxed{", "cm", " is ", "10^", "e3",
    "\\{", "\\}", "\\cup", "(a)", "the ", " to ", "^{99}", "km/h", "degrees", "°", "½", "million",
]), max_size=14).map("".join)  # fmt: skip


@given(SIGNS, SIGNS)
def test_text_checks_never_raise_on_what_looks_like_answers(given_answer, answer):
    assert check_text(tagged(given_answer), answer).accuracy in (0.0, 1.0)
    same = check_text(tagged(given_answer), given_answer)
    assert same.decided_by in ("exact", "choice", "none")
