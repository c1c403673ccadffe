"""The answer checker: which rule decides in each mode, and hostile text of a megabyte in linear time."""

from __future__ import annotations

import doctest
import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.verify.check import check_answer, check_text, is_equal_math

MEGA = 1_000_000
MODES = ("strict", "released")
RULES = ("rules.characters", "rules.chinese", "rules.times", "rules.units", "rules.words")
MODULES = ("check", "math", "notation", "quantities", "reading", "record", "released", "strict", *RULES)


def tagged(answer: str) -> str:
    return f"<think>r</think><answer>{answer}</answer>"


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_hold(module):
    found = doctest.testmod(importlib.import_module(f"data_pipeline.verify.{module}"))
    assert found.attempted and not found.failed


@pytest.mark.parametrize(
    ("mode", "response", "answer", "decided_by"),
    [
        ("released", tagged("42"), "42", "exact"),
        ("released", tagged("B."), "B", "choice"),
        ("released", tagged("1/2"), "0.5", "math"),
        ("released", tagged("7"), "8", "none"),
        ("strict", tagged("7"), "7", "exact"),
        ("strict", tagged("b"), "B", "choice"),
        ("strict", tagged("1/2"), "0.5", "number"),
        ("strict", tagged(r"\sqrt{12}"), r"2\sqrt{3}", "math"),
        ("strict", tagged(r"\sqrt{2}, 1"), r"1, \sqrt{2}", "none"),
        ("strict", tagged(r"\{2, \sqrt{12}\}"), r"\{2\sqrt{3}, 2\}", "math"),
        ("strict", tagged("8"), "9", "none"),
    ],
)
def test_verdict_names_the_deciding_rule(mode, response, answer, decided_by):
    assert check_answer(response, answer, mode).decided_by == decided_by


INTEGERS = st.integers(-(10**14), 10**14)


@given(INTEGERS, st.one_of(INTEGERS, st.integers(-20, 20)))
def test_different_integers_are_decided_without_math_verify_and_as_it_would(a, b):
    for mode in MODES:
        assert check_text(tagged(str(a)), str(a), mode).decided_by == "exact"
        if a != b:
            assert check_text(tagged(str(a)), str(b), mode).decided_by == "none"
            assert not is_equal_math(str(a), str(b), mode)


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


PIECES = (
    ["(", ")", "{", "}", "1", "1,", " or ", " and ", "A", "(a) ", "\\pm", "\\sqrt(", "\\boxed{", "x=", "/", "-"]
    + ["$", "m ", "%", ":", "e9", "^9", "\\frac{1}{", "\\text{", "the ", " is ", "1 to ", "\\{", ". ", "["]
)  # fmt: skip


@pytest.mark.timeout(60)
def test_strict_rules_are_cheap_on_the_longest_texts_they_compare():
    for first in PIECES:
        for second in PIECES:
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
def test_text_checks_never_raise_on_what_resembles_answers(given_answer, answer):
    assert check_text(tagged(given_answer), answer).accuracy in (0.0, 1.0)
    same = check_text(tagged(given_answer), given_answer)
    assert same.decided_by in ("exact", "choice", "none", "no_reference")
