"""What went wrong in a response: each category, which of two comes first, and hostile texts."""

from __future__ import annotations

import time

import pytest

from data_pipeline.verify.check import check_answer
from data_pipeline.verify.reading import MAX_STATEMENTS, list_statements
from rl.rewards.failures import FAILURES, count_failures, sort_failure
from rl.types import AskedResponse

CASES = [
    # response, reference, checker's mode, category
    ("<think>so</think><answer>12</answer>", "12", "strict", ""),
    ("<think>so</think><answer>13</answer>", "12", "strict", "wrong"),
    (
        "<think>It is 12.</think><answer>13</answer>",
        "12",
        "strict",
        "wrong",
    ),  # what it thought is not its answer
    ("<think>\\boxed{12}</think><answer>13</answer>", "12", "strict", "wrong"),
    ("<think>so</think><answer>greater than or equal to 5</answer>", "12", "strict", "wrong"),
    ("<think>so</think><answer>12 or 13</answer>", "12", "strict", "hedged"),
    ("<think>so</think><answer>x = 1 or x = 3</answer>", "x = 1 or x = 2", "strict", "wrong"),
    ("<think>so</think><answer>12</answer><answer>13</answer>", "12", "strict", "hedged"),
    (
        "<think>so</think><answer>13</answer><answer>12</answer>",
        "12",
        "released",
        "hedged",
    ),  # it reads the first
    ("<think>so</think><answer>13</answer><answer>13.0</answer>", "12", "strict", "wrong"),
    ("<think>so</think><answer>A, B</answer>", "A", "strict", "hedged"),
    ("<think>so</think><answer>It cannot be determined.</answer>", "12", "strict", "hedged"),
    ("<think>so</think>There is not enough information to say.", "12", "strict", "hedged"),
    ("<think>so</think><answer>Cannot be determined</answer>", "A", "strict", "hedged"),
    ("<think>so, \\boxed{12}", "12", "strict", "misread"),  # the thought is never closed
    ("\\boxed{12}<answer>see above</answer>", "12", "strict", "misread"),
    ("<think>so</think>", "12", "strict", "no_answer"),
    ("", "12", "strict", "no_answer"),
]


def record(response: str | None, answer: str, mode: str = "strict", **more: object) -> AskedResponse:
    blank = AskedResponse(id="q", answer=answer, response=response, finish_reason="stop")
    verdict = check_answer(response or "", answer, "released" if mode == "released" else "strict")
    return AskedResponse(**vars(blank.with_verdict(verdict)) | more)


@pytest.mark.parametrize(("response", "answer", "mode", "category"), CASES)
def test_response_is_sorted_by_what_went_wrong(response: str, answer: str, mode: str, category: str):
    assert sort_failure(record(response, answer, mode)) == category


def test_earlier_category_comes_first():
    text, wrong = "<answer>12 or 13</answer>", {"accuracy": 0.0}
    assert sort_failure(record(text, "12", **wrong, decided_by="timeout")) == "not_checked"
    assert (
        sort_failure(record(text, "12", **wrong, decided_by="timeout", finish_reason="length")) == "truncated"
    )
    fault = {"fault": "image: broken", "finish_reason": "length"}
    assert sort_failure(record(None, "12", **wrong, **fault)) == "not_asked"
    assert sort_failure(record(text, "12", accuracy=1.0, finish_reason="length")) == ""


def test_counts_are_in_the_order_of_the_categories():
    records = [record(response, answer, mode) for response, answer, mode, _ in CASES]
    counts = count_failures(records)
    assert counts == {name: sum(case[3] == name for case in CASES) for name in FAILURES if name in counts}
    assert (
        list(counts) == [name for name in FAILURES if name in counts]
        and sum(counts.values()) == len(CASES) - 1
    )


@pytest.mark.parametrize(
    "piece", ["<answer>", "\\boxed{", "<answer>1</answer>", "\\boxed{1}", "<think>", "or "]
)
def test_hostile_texts_are_sorted_in_linear_time(piece: str):
    began = time.process_time()
    assert (
        sort_failure(AskedResponse(id="q", answer="12", response=piece * 50_000, extracted=piece)) in FAILURES
    )
    assert time.process_time() - began < 2
    assert len(list_statements(piece * 50_000).answers) <= MAX_STATEMENTS
