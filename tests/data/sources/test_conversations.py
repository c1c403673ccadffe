"""Turns and images of a row become those of a sample, each image in its place, or are refused by name."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from datasets import Dataset

from data_pipeline.errors import BadSample
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.sources.readers import read_file
from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, Sample
from tests.helpers.corpora import CLOCK, TRIANGLE, make_row

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "What?"}


def read_messages(**fields: object) -> Sample:
    return CORPORA["messages"].read(make_row(**fields))


def ask(content: object, **fields: Any) -> Sample:
    return read_messages(messages=[{"role": "user", "content": content}], **{"answer": "1", **fields})


def test_marks_stay_in_place_and_missing_ones_go_first():
    def asked(content: object, *images: str) -> str:
        turns = [{"role": "user", "content": content}]
        return read_messages(messages=turns, images=list(images), answer="1").messages[1].content

    two = ("triangle.png", "circle.png")
    assert asked("A <image> and B <image>?", *two) == "A <image> and B <image>?"
    assert asked("A and B?", *two) == "<image><image>A and B?"
    parts = [{"type": "text", "text": "Like "}, {"type": "image"}, {"type": "text", "text": "?"}]
    assert asked(parts, "triangle.png") == "Like <image>?"
    inline = [
        {"type": "image_url", "image_url": {"url": "circle.png"}},
        {"type": "text", "text": "<image>\nWhat?"},
    ]
    assert asked(inline) == "<image>\nWhat?", "a mark in the text stands for the part"


def test_each_image_has_its_mark_or_the_row_is_refused():
    """Any marks in any texts, parts and columns: every image is used once, in its place, or the row is bad."""
    texts = ["What?", "A <image>?", "<image> B <image>?"]
    parts = [
        [],
        [IMAGE],
        [{"type": "image", "image": "circle.png"}],
        [{"type": "image_url", "image_url": {"url": "circle.png"}}] * 2,
    ]
    columns = [[], ["triangle.png"], ["triangle.png", "circle.png"]]
    good = 0
    for text, before, listed in itertools.product(texts, parts, columns):
        marks, places = text.count(IMAGE_MARK), len(before)
        inside = sum(part is not IMAGE for part in before)
        is_clear = marks in (0, places) if places else True
        wanted = inside or len(listed)
        is_clear &= (marks or places) in (0, wanted) and not (inside and listed)
        content = [*before, {"type": "text", "text": text}]
        if not is_clear:
            with pytest.raises(BadSample, match=r"marks|keep one of both"):
                ask(content, images=listed)
            continue
        found, good = ask(content, images=listed), good + 1
        assert found.messages[1].content.count(IMAGE_MARK) == len(found.images) == wanted
    assert good > 10


@pytest.mark.parametrize(
    "text",
    [
        "What does `<image>` mean?",
        "What does '<image>' mean?",
        'What does "<image>" mean?',
        "What does “<image>” mean?",
        "Why is `<svg><image></svg>` empty?",
        "What is in <image></image>?",
        "What does the <image> tag do?",
        "What does an HTML <image> element do?",
    ],
)
@pytest.mark.parametrize("images", [["triangle.png"], []])
def test_the_word_image_does_not_take_the_place_of_an_image(text: str, images: list[str]):
    with pytest.raises(BadSample, match="<image>.* reads like a word, not like the place of an image"):
        ask(text, images=images)


@pytest.mark.parametrize(
    "text",
    ["<image>Tag all.", 'Read <image>"STOP"?', "<image>\nWhat?", "the <image>", "(<image>)", "a <image> b"],
)
def test_a_place_is_no_word(text: str):
    assert ask(text, images=["triangle.png"]).messages[1].content == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(images=["triangle.png"], image="circle.png"), "image: wanted images in one column"),
        (dict(image=TRIANGLE, picture=CLOCK), "picture: wanted images in `images`, saw"),
        (dict(image=TRIANGLE, mask={"bytes": TRIANGLE, "path": None}), "mask: wanted images in `images`"),
        (dict(pictures=[{"bytes": TRIANGLE}]), "pictures: wanted images in `images`"),
        (dict(image_path="a/1.PNG"), "image_path: wanted images in `images`"),
        (dict(image_1="1.jpg", image_2="2.jpg"), "image_1: wanted images in `images`"),
    ],
)
@pytest.mark.parametrize("corpus", ["messages", "questions", "prompts"])
def test_an_image_that_would_not_be_used_is_refused(corpus: str, fields: dict, message: str):
    turns = [{"role": "user", "content": "What?"}]
    row = make_row(
        question="What?", messages=turns, prompt=turns, answer="1", reward_model={"ground_truth": 1}, **fields
    )
    with pytest.raises(BadSample, match=re.escape(message)):
        CORPORA[corpus].read(row)


def test_the_same_image_in_both_columns_is_one_image():
    assert ask("What?", images=["triangle.png"], image="triangle.png").images == (TRIANGLE,)
    assert ask("What?", images=[], image="triangle.png", thumbnail=b"no image").images == (TRIANGLE,)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "text", "text": "a", "image_url": {"url": "triangle.png"}},
            "a text alone in a part of type text",
        ),
        ({"type": "text", "text": None}, "a text alone in a part of type text"),
        ({"type": "text", "text": ["a"]}, "a text alone in a part of type text"),
        ({"type": "image", "image": "triangle.png", "text": "a"}, "no text in a part of type image"),
        ({"type": "image", "image": "triangle.png", "url": "circle.png"}, "one image in a part"),
        ("a", "parts of type text, image, image_url, video or video_url"),
        ([TEXT], "parts of type text, image, image_url, video or video_url"),
    ],
)
def test_a_part_that_would_lose_something_is_refused(part: object, message: str):
    with pytest.raises(BadSample, match=f"messages.content: wanted {message}"):
        ask([TEXT, part])


@pytest.mark.parametrize("name", ["image", "url", "path"])
def test_parts_of_transformers_hold_images(name: str):
    assert ask([{"type": "image", name: "triangle.png"}, TEXT]).images == (TRIANGLE,)


def test_parts_that_parquet_filled_with_nothing_are_read(tmp_path):
    parts = [{"type": "image_url", "image_url": {"url": "triangle.png"}}, {"type": "text", "text": "What?"}]
    filled = [{"text": None, "image_url": {"url": None}, **part} for part in parts]
    Dataset.from_list([{"messages": [{"role": "user", "content": filled}]}]).to_parquet(
        tmp_path / "a.parquet"
    )
    (load,) = read_file(tmp_path / "a.parquet")
    found = read_messages(**load(), answer="1")
    assert found.images == (TRIANGLE,) and found.messages[1].content == "<image>What?"


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_the_system_turn(column: str):
    turns = [{"role": "user", "content": "What?"}]
    own = {"role": "system", "content": "Be short."}
    as_turn = read_messages(messages=[own, *turns], answer="1")
    for fields in (dict(messages=turns), dict(messages=[own, *turns])):
        found = read_messages(**fields, answer="1", **{column: " Be short.\n"})
        assert (found.id, found.messages) == (as_turn.id, as_turn.messages)
    prompt = make_row(prompt=turns, reward_model={"ground_truth": 1}, **{column: "Be short."})
    assert CORPORA["prompts"].read(prompt).messages[0].content == "Be short."
    question = make_row(question="What?", answer=1, **{column: "Be short."})
    assert CORPORA["questions"].read(question).messages[0].content == "Be short."
    assert read_messages(messages=turns, answer="1", **{column: None}).messages[0].content == SYSTEM_PROMPT


@pytest.mark.parametrize(
    "fields",
    [
        dict(system="Be long."),
        dict(system="Be short.", system_prompt="Be long."),
        dict(system=["Be", "short."]),
        dict(system=True),
    ],
)
def test_two_system_prompts_are_refused(fields: dict):
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What?"}]
    with pytest.raises(BadSample, match="system: wanted"):
        read_messages(messages=turns, answer="1", **fields)


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        (dict(messages=[]), "schema", "a list of turns"),
        (dict(messages="hello"), "schema", "a list of turns"),
        (dict(messages=[{"role": "tool", "content": "x"}]), "schema", "rename or drop"),
        (dict(messages=[{"role": "user", "content": 5}]), "schema", "saw int 5"),
        (dict(messages=[{"role": "user", "content": [{"type": "video"}]}]), "video", "1 parts with videos"),
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
