"""The strict rules on labelled answers: a set they were tuned on, and one they were not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from data_pipeline.errors import BadSample
from data_pipeline.verify.check import Mode, check_answer, check_reference, check_text
from data_pipeline.verify.reading import read

ROOT = Path(__file__).parents[3]
KNOWN_MISTAKES = {  # docs/verify.md lists them; all are right, and found wrong
    "-2, 1",
    r"\{1,2\}",
    "A B",
    "all real numbers",
    "Group B",
    "one half",
    "24 is the perimeter",
}
KNOWN_MISSES = {"2万5千", "第三", r"0.\overline{3}x", "2 m and 30 cm"}  # of the neighbours


class Score(NamedTuple):
    precision: float
    recall: float


def read_pairs(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "tests" / "golden" / name).read_text().splitlines()]


TUNED, HELD_OUT = read_pairs("answer_pairs.jsonl"), read_pairs("held_out_pairs.jsonl")


def tagged(answer: str) -> str:
    return f"<think>r</think><answer>{answer}</answer>"


def found_right(rows: list[dict], mode: Mode) -> list[bool]:
    return [check_answer(row["response"], row["answer"], mode).accuracy == 1 for row in rows]


def score(rows: list[dict], found: list[bool]) -> Score:
    right = [row["right"] for row in rows]
    both = sum(map(bool.__and__, found, right))
    return Score(both / sum(found), both / sum(right))


@pytest.mark.parametrize(("rows", "size", "kinds"), [(TUNED, 300, 18), (HELD_OUT, 200, 20)])
def test_labelled_sets_are_large_varied_and_free_of_repeats(rows, size, kinds):
    assert len(rows) >= size
    assert len({(row["response"], row["answer"]) for row in rows}) == len(rows)
    assert len({row["kind"] for row in rows}) >= kinds
    assert 0.3 < sum(row["right"] for row in rows) / len(rows) < 0.7


def test_held_out_pairs_are_not_among_the_tuned_ones():
    tuned, held_out = ({(read(r["response"])[0], r["answer"]) for r in rows} for rows in (TUNED, HELD_OUT))
    assert not tuned & held_out


def test_precision_and_recall_on_the_tuned_set_are_those_of_the_docs():
    strict, released = found_right(TUNED, "strict"), found_right(TUNED, "released")
    ours, theirs = score(TUNED, strict), score(TUNED, released)
    assert ours.precision >= 0.995 and ours.recall >= 0.98
    assert ours.precision > theirs.precision and ours.recall > theirs.recall
    docs = (ROOT / "docs" / "verify.md").read_text()
    for mode, found in (("strict", ours), ("released", theirs)):
        assert f"| {mode} | {found.precision:.3f} | {found.recall:.3f} |" in docs, (mode, found)
    mistakes = {
        read(row["response"])[0]
        for row, is_right in zip(TUNED, strict, strict=True)
        if is_right != row["right"]
    }
    assert mistakes <= KNOWN_MISTAKES


# Well below what each mode scored at first sight (0.990 and 0.874; 0.699 and 0.586). A lower score is a regression;
# these rows are never a reason to change a rule, or they would measure nothing.
@pytest.mark.parametrize(("mode", "floor"), [("strict", Score(0.95, 0.80)), ("released", Score(0.60, 0.50))])
def test_held_out_scores_do_not_fall_below_their_floor(mode, floor):
    found = score(HELD_OUT, found_right(HELD_OUT, mode))
    assert found.precision >= floor.precision and found.recall >= floor.recall, found


@pytest.mark.parametrize("name", ["checker_cases.jsonl", "checker_neighbours.jsonl"])
def test_cases_and_their_neighbours_are_decided_rightly(name):
    rows = read_pairs(name)
    found = [check_answer(row["response"], row["answer"]).accuracy for row in rows]
    assert not [row for row, is_right in zip(rows, found, strict=True) if is_right > row["accuracy"]]
    missed = [row for row, is_right in zip(rows, found, strict=True) if is_right < row["accuracy"]]
    assert {read(row["response"])[0] for row in missed} <= KNOWN_MISSES


@pytest.mark.parametrize("mode", ["strict", "released"])
@pytest.mark.parametrize(
    "answer", ["", "  \n", "$$", "**", ".", "\u200b", r"$\boxed{ }$", "<answer> </answer>"]
)
def test_empty_reference_is_refused(answer, mode):
    for response in ("", tagged(""), tagged("5"), tagged(answer)):
        verdict = check_text(response, answer, mode)
        assert (verdict.accuracy, verdict.format, verdict.decided_by) == (0, 0, "no_reference")
    with pytest.raises(BadSample, match="no_reference: answer: .* is no reference"):
        check_reference(answer)


def test_empty_answer_is_never_right():
    for response in ("", tagged(""), tagged("$$")):
        assert check_text(response, "5").decided_by == "none"


@pytest.mark.parametrize(
    ("given", "reference", "is_right"),
    [
        ("1e9999", "1e9999", True),  # as text
        ("1e9999", "1e99999", False),
        ("3 or 4", "3, 4", False),
        ("4, 3", "3 and 4", True),
        ("x = 5", "5", True),
        ("x = 5", "y = 5", False),
        ("(x, y) = (1, 2)", "(1, 2)", True),
        ("4:6", "2:3", True),
        ("3:30", "1:10", False),  # two times of day
        ("1 by 2", "1 by 2", True),
        ("\\boxed{2 by 1}", "1 by 2", False),  # rows and columns
        ("by + ax = c", "ax + by = c", True),
        ("Yes, it is", "yes", True),
        ("yes, no", "yes", False),
        ("The Great Wall", "great wall", True),
    ],
)
def test_lists_names_and_words(given, reference, is_right):
    assert (check_answer(tagged(given), reference).accuracy == 1) == is_right
