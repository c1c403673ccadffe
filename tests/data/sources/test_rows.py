"""Reference answers and system prompts of a row become those of a sample."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_pipeline.errors import BadSample
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.types import SYSTEM_PROMPT, Sample
from tests.helpers.corpora import make_row


def read_messages(**fields: object) -> Sample:
    return CORPORA["messages"].read(make_row(**fields))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>1 or 2</think><answer> 2. </answer>", "2"),
        ("It is \\boxed{1}, no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("It is 7", ""),
        ("It is \\boxed{7", ""),
        ("</answer> 7 <answer>\nis 7", ""),
    ],
)
def test_reference_answer_is_only_taken_from_tags_or_boxes(response: str, answer: str):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": response}]
    assert read_messages(messages=turns).answer == answer


@pytest.mark.parametrize("answer", ["<answer></answer>", "<answer> </answer>", "$$", "\u200b"])
def test_a_reference_that_says_nothing_is_refused_unless_there_is_a_response(answer: str):
    row = make_row(question="What?", answer=answer)
    with pytest.raises(BadSample, match="no reference|nor a reference"):
        CORPORA["questions"].read(row)
    assert CORPORA["questions"].read(
        make_row(question="What?", answer=answer, response="It is 3.")
    ).answer in (
        "",
        answer,
    )


def test_system_prompt_is_put_before_rows_that_have_none():
    row = make_row(question="What?", answer="1")
    with_prompt, without = (
        CORPORA["questions"].read(replace(row, system=system)) for system in (SYSTEM_PROMPT, "")
    )
    assert with_prompt.messages[0].content == SYSTEM_PROMPT and without.messages[0].role == "user"
    assert with_prompt.id == without.id
