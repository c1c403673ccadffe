"""Questions, verdicts and numbers equal what lmms-eval's task code gave for the same rows: see tests/peers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_pipeline.benchmarks.registry import BENCHMARKS
from tests.helpers.eval_cases import (
    GOLDEN,
    OUR_NAMES,
    PRINTED,
    check_responses,
    compute_numbers,
    digest,
    draw_questions,
    mean_format,
    reads_words_as_a_letter,
    write_prompt,
)
from tests.helpers.eval_questions import SOURCES

DOCS = Path(__file__).parents[3] / "docs" / "other_evaluators.md"
THEIRS = json.loads(GOLDEN.read_text())["benchmarks"]
DIFFERENT_PROMPT = ("charxiv_reasoning",)
DIFFERENT_WORDS = ("charxiv_reasoning",)
each = pytest.mark.parametrize("name", SOURCES)


def test_each_benchmark_is_compared_or_listed_as_not_compared():
    listed = DOCS.read_text(encoding="utf-8").split("Not compared:")[1].split("\n## ")[0]
    for name in BENCHMARKS.keys() - THEIRS.keys():
        assert f"`{name}`" in listed, f"{DOCS.name} does not say that {name} was not compared"


def read_accuracies(name: str) -> list[list[float]]:
    return [[float(digit) for digit in word] for word in THEIRS[name]["accuracies"].split()]


def count_differences(name: str, mode: str) -> tuple[int, int]:
    """Returns how many responses only lmms-eval finds right, and how many only we do."""
    pairs = [
        (theirs, verdict.accuracy)
        for row, verdicts in zip(read_accuracies(name), check_responses(name, mode), strict=True)
        for theirs, verdict in zip(row, verdicts, strict=True)
    ]
    return sum(theirs > ours for theirs, ours in pairs), sum(theirs < ours for theirs, ours in pairs)


@each
def test_questions_are_asked_as_lmms_eval_asks_them(name):
    prompts = [write_prompt(question.sample) for question in draw_questions(name)]
    assert (digest(name, prompts) == THEIRS[name]["digest"]) == (name not in DIFFERENT_PROMPT)


@each
def test_numbers_equal_lmms_evals_for_its_verdicts(name):
    ours = compute_numbers(name, read_accuracies(name))
    theirs = {OUR_NAMES[name]: n for name, n in THEIRS[name]["numbers"].items() if name in OUR_NAMES}
    assert theirs == {metric: pytest.approx(ours[metric], abs=PRINTED) for metric in theirs}
    assert next(iter(ours)) in theirs


@each
def test_released_mode_gives_lmms_evals_verdicts(name):
    verdicts = check_responses(name, "released")
    for question, theirs, row in zip(draw_questions(name), read_accuracies(name), verdicts, strict=True):
        ours = [verdict.accuracy for verdict in row]
        if reads_words_as_a_letter(question.sample.answer):
            assert theirs >= ours
        else:
            assert theirs == ours, question
    if "format_score" in THEIRS[name]["numbers"]:
        assert mean_format(name) == pytest.approx(THEIRS[name]["numbers"]["format_score"])


@each
def test_documented_differences_are_those_counted(name):
    line = re.search(rf"^\| `{name}` \|.*$", DOCS.read_text(), re.M)
    assert line, f"{DOCS.name} has no line for {name}"
    told = [int(cell.replace(",", "")) for cell in re.findall(r"(?<=\| )[\d,]+(?= \|)", line[0])]
    responses = sum(len(question.responses) for question in draw_questions(name))
    assert told == [responses, *count_differences(name, "released"), *count_differences(name, "strict")]
