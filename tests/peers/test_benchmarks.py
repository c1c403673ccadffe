"""Our questions, verdicts and numbers of benchmarks equal those of lmms-eval's own task code on the same rows."""

from __future__ import annotations

import json

import pytest

from data_pipeline.benchmarks.registry import BENCHMARKS
from tests.helpers.eval_cases import (
    GOLDEN,
    OUR_NAMES,
    PRINTED,
    check_responses,
    compute_numbers,
    draw_questions,
    mean_format,
    reads_words_as_a_letter,
    write_prompt,
)
from tests.helpers.eval_questions import SOURCES
from tests.peers.lmms_tasks import load_task, score
from tests.peers.write_lmms_golden import record

SEEDS = (1, 2)
each = pytest.mark.parametrize("name", SOURCES)


@each
def test_golden_is_what_lmms_eval_gives(name):
    assert record(name, score(name)) == json.loads(GOLDEN.read_text())["benchmarks"][name]


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_equal_for_the_same_verdicts(name, seed):
    theirs = score(name, seed)
    ours = compute_numbers(name, theirs.accuracies, seed)
    compared = {OUR_NAMES[metric]: number for metric, number in theirs.numbers.items() if metric in OUR_NAMES}
    assert compared == {metric: pytest.approx(ours[metric], abs=PRINTED) for metric in compared}
    assert next(iter(ours)) in compared


@each
@pytest.mark.parametrize("seed", SEEDS)
def test_verdicts_equal_those_of_the_released_mode(name, seed):
    theirs, verdicts = score(name, seed), check_responses(name, "released", seed)
    for question, their_row, row in zip(draw_questions(name, seed), theirs.accuracies, verdicts, strict=True):
        if not reads_words_as_a_letter(question.sample.answer):
            assert their_row == [verdict.accuracy for verdict in row], question
    if "format_score" in theirs.numbers:
        assert theirs.numbers["format_score"] == pytest.approx(mean_format(name, seed))


@each
def test_prompts_equal(name):
    """But CharXiv's, whose instruction is chosen by another column here: docs/benchmarks.md."""
    ours = [write_prompt(question.sample) for question in draw_questions(name)]
    same = [ours == theirs for ours, theirs in zip(ours, score(name).prompts, strict=True)]
    assert all(same) or (name == "charxiv_reasoning" and any(same))


@each
def test_settings_equal(name):
    """The number of responses, their length and the system prompt."""
    task, benchmark = load_task(name), BENCHMARKS[name]
    assert task["generation_kwargs"]["max_new_tokens"] == benchmark.max_tokens
    assert task["generation_kwargs"].get("temperature", 0) == benchmark.temperature
    assert task.get("repeats", 1) == benchmark.n
    assert task["doc_to_text"].__globals__["SYSTEM_PROMPT"] == benchmark.system_prompt
