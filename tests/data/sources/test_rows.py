"""Conversations, reference answers and image marks of a row become those of a sample, or are refused by name."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from data_pipeline.errors import BadSample
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.types import SYSTEM_PROMPT, Sample
from tests.helpers.corpora import make_row


def read_messages(**fields: object) -> Sample:
    return CORPORA["messages"].read(make_row(**fields))


def test_marks_stay_in_place_and_missing_ones_go_first():
    def asked(content: object, *images: str) -> str:
        turns = [{"role": "user", "content": content}]
        return read_messages(messages=turns, images=list(images), answer="1").messages[1].content

    two = ("triangle.png", "circle.png")
    assert asked("A <image> and B <image>?", *two) == "A <image> and B <image>?"
    assert asked("A <image> and B?", *two) == "<image>A <image> and B?"
    parts = [{"type": "text", "text": "Like "}, {"type": "image"}, {"type": "text", "text": "?"}]
    assert asked(parts, "triangle.png") == "Like <image>?"
    inline = [
        {"type": "image_url", "image_url": {"url": "circle.png"}},
        {"type": "text", "text": "<image>\nWhat?"},
    ]
    assert asked(inline) == "<image>\nWhat?", "a mark in the text stands for the part"


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


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        (dict(messages=[]), "schema", "a list of turns"),
        (dict(messages="hello"), "schema", "a list of turns"),
        (dict(messages=[{"role": "tool", "content": "x"}]), "schema", "rename or drop"),
        (dict(messages=[{"role": "user", "content": 5}]), "schema", "saw int 5"),
        (dict(messages=[{"role": "user", "content": [{"type": "video"}]}]), "schema", "image_url"),
        (dict(messages=[{"role": "user", "content": "<image>Eh?"}], answer="1"), "image", "1 marks"),
        (dict(messages=[{"role": "user", "content": "Eh?"}]), "answer", "neither a response"),
        (dict(messages=[{"role": "assistant", "content": "Eh!"}]), "text", "no question"),
        (
            dict(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "<image>"}]),
            "text",
            "outside the user's turns",
        ),
        (dict(messages=[{"role": "user", "content": "\ud800"}], answer="1"), "text", "broken characters"),
    ],
)
def test_wrong_conversation_is_refused(fields: dict, reason: str, message: str):
    with pytest.raises(BadSample, match=re.escape(message)) as caught:
        read_messages(**fields)
    assert caught.value.reason == reason


def test_system_prompt_is_put_before_rows_that_have_none():
    row = make_row(question="What?", answer="1")
    with_prompt, without = (
        CORPORA["questions"].read(replace(row, system=system)) for system in (SYSTEM_PROMPT, "")
    )
    assert with_prompt.messages[0].content == SYSTEM_PROMPT and without.messages[0].role == "user"
    assert with_prompt.id == without.id
