"""The strict rules: what they score on labelled answers, how they read a response, and the numbers' corners."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.verify.check import Mode, check_answer, check_text
from data_pipeline.verify.notation import plain
from data_pipeline.verify.numbers import read_quantity
from data_pipeline.verify.reading import read

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "golden" / "answer_pairs.jsonl").read_text().splitlines()
]
KNOWN_MISTAKES = {  # docs/verify.md lists them; all but the first are right, and found wrong
    "1,234",
    "-2, 1",
    r"\{1,2\}",
    "A B",
    "all real numbers",
    "Group B",
    "one half",
    "24 is the perimeter",
}


class Score(NamedTuple):
    precision: float
    recall: float


def tagged(answer: str) -> str:
    return f"<think>r</think><answer>{answer}</answer>"


def found_right(mode: Mode) -> list[bool]:
    return [check_answer(row["response"], row["answer"], mode).accuracy == 1 for row in ROWS]


def score(found: list[bool]) -> Score:
    right = [row["right"] for row in ROWS]
    both = sum(map(bool.__and__, found, right))
    return Score(both / sum(found), both / sum(right))


def test_the_labelled_set_is_large_varied_and_free_of_repeats():
    assert len(ROWS) >= 300
    assert len({(row["response"], row["answer"]) for row in ROWS}) == len(ROWS)
    assert len({row["kind"] for row in ROWS}) >= 18
    assert 0.3 < sum(row["right"] for row in ROWS) / len(ROWS) < 0.7


def test_precision_and_recall_are_those_of_the_docs():
    strict, released = found_right("strict"), found_right("released")
    ours, theirs = score(strict), score(released)
    assert ours.precision >= 0.995 and ours.recall >= 0.98
    assert ours.precision > theirs.precision and ours.recall > theirs.recall
    docs = (Path(__file__).parents[3] / "docs" / "verify.md").read_text()
    for mode, found in (("strict", ours), ("released", theirs)):
        assert f"| {mode} | {found.precision:.3f} | {found.recall:.3f} |" in docs, (mode, found)
    mistakes = {
        read(row["response"])[0]
        for row, is_right in zip(ROWS, strict, strict=True)
        if is_right != row["right"]
    }
    assert mistakes <= KNOWN_MISTAKES


@pytest.mark.parametrize(
    ("response", "extracted", "form"),
    [
        (tagged("42") + "\n", "42", 1.0),
        (" " + tagged("42") + "<|im_end|>\n", "42", 1.0),
        ("<think>a <answer>1</answer></think><answer>2</answer>", "2", 1.0),
        ("<think>a</think><answer>1</answer><answer>2</answer>", "2", 1.0),
        ("<answer>1</answer><think>b <answer>2</answer></think>", "1", 0.8),
        ("<think>a</think><answer>1</answer> but <answer>2", "", 0.0),
        ("<think>a <answer>1</answer>", "1", 0.0),
        ("<think>a <answer>1</answer> or", "", 0.0),
        ("</think><answer>4</answer>", "4", 0.0),
        (r"<think>\boxed{3}</think>\boxed{4}", "4", 1.0),
        (r"\boxed{3} then \boxed{4", "", 0.0),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", 1.0),
        ("so x = 42.", "42.", 0.0),
        ("so x = 42", "", 0.0),
        ("so x = 42\n", "42", 0.0),
        ("The answer is 42", "42", 0.0),
        ("7", "7", 0.0),
        ("", "", 0.0),
        ("</answer>", "", 0.0),
        ("<think>", "", 0.0),
    ],
)
def test_reads_the_last_answer_outside_of_thoughts(response, extracted, form):
    found, score = read(response)
    assert found == extracted
    assert score == (form if len(response) > 50 or form != 0.8 else 0.0)


def test_nothing_is_never_an_answer():
    for response, answer in [("", ""), (tagged(""), ""), (tagged("5"), ""), (tagged("$$"), "$$")]:
        assert check_text(response, answer).decided_by == "none"


@pytest.mark.parametrize(
    ("answer", "reference", "decided_by"),
    [
        ("7", "7", "exact"),
        ("b", "B", "choice"),
        ("1/2", "0.5", "number"),
        (r"\sqrt{12}", r"2\sqrt{3}", "math"),
        (r"\sqrt{2}, 1", r"1, \sqrt{2}", "none"),
        (r"\{2, \sqrt{12}\}", r"\{2\sqrt{3}, 2\}", "math"),
        ("8", "9", "none"),
    ],
)
def test_says_what_decided(answer, reference, decided_by):
    assert check_answer(tagged(answer), reference).decided_by == decided_by


@given(st.integers(-(10**14), 10**14))
def test_whole_numbers_are_exact_in_both_modes(number):
    for mode in ("strict", "released"):
        assert check_text(tagged(str(number)), str(number), mode).decided_by == "exact"
        assert check_text(tagged(str(number)), str(number + 1), mode).decided_by == "none"


@given(st.integers(-999_999, 999_999), st.integers(1, 999))
def test_fractions_are_read_like_fractions_module_reads_them(top, bottom):
    for text in (f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}"):
        found = read_quantity(plain(text))
        assert found and found.value == Fraction(top, bottom)


@given(st.decimals(-(10**9), 10**9, places=4))
def test_decimals_are_read_like_the_fractions_module_reads_them(number):
    for text in (f"{number}", f"{number:,}", f"{number}e0"):
        found = read_quantity(plain(text))
        assert found and found.value == Fraction(str(number))


@pytest.mark.parametrize(
    ("given_answer", "reference", "is_right"),
    [
        ("0.3333", "1/3", True),
        ("0.333", "1/3", False),  # three digits do not stand for an exact value
        ("0.33333", "1/3", True),
        ("0.33334", "1/3", False),
        ("1/3", "0.333", True),  # a reference of three digits was rounded
        ("1/3", "0.33", False),
        ("2.675", "2.67", True),  # half a unit either way
        ("0.1251", "1/8", False),  # terminates: no rounding
        ("1e400", "1e401", False),
        ("1e9999", "1e9999", True),  # as text
        ("1e9999", "1e99999", False),
        ("5 million", "5,000,000", True),
        ("5 million dollars", "$5,000,000", True),
        ("99%", "0.99", True),
        ("0.99", "0.99%", False),
        ("1 km", "1000 m", True),
        ("1 km^2", "1000000 m^2", True),
        ("1 km^2", "1000 m^2", False),
    ],
)
def test_rounding_and_units(given_answer, reference, is_right):
    assert (check_text(tagged(given_answer), reference).accuracy == 1) == is_right
