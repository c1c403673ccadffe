"""The most frequent training answers, and which questions and images were trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from data_pipeline.select.baseline import guess_answers
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.types import Sample
from tests.helpers.alike import ask, png


def picture(color: str) -> tuple[bytes, ...]:
    return (png(Image.new("RGB", (32, 32), color)),)


def question(name: str, text: str, answer: str, kind: str = "", color: str = "") -> Sample:
    sample = ask(name, text, answer=answer)
    return replace(sample, metadata={"kind": kind}, images=picture(color) if color else ())


TRAINING = [
    question("a", "Which shape?", "circle", "shape", "red"),
    question("b", "Which shape?", "circle", "shape", "blue"),
    question("c", "Which shape?", "square", "shape", "green"),
    question("d", "Is it round?", "yes", "yes/no", "red"),
    question("e", "Is it flat?", "no", "yes/no", "blue"),
    question("f", "Is it small?", "no", "yes/no", "green"),
    question("g", "How many?", "", "count"),
]


def test_guesses_by_text_and_by_kind_and_what_was_seen(tmp_path: Path):
    write_shards(TRAINING, tmp_path / "train")
    asked = [
        question("1", "Which shape?", "square", "shape", "red"),
        question("2", "Is it round?", "no", "yes/no", "black"),
        question("3", "Is it new?", "no", "yes/no", "blue"),
        question("4", "How many?", "3", "count"),
        Sample(id="unreadable", source="", messages=()),
    ]
    guesses, samples, is_complete = guess_answers(asked, [str(tmp_path / "train")] * 2, limit=100)
    assert (samples, is_complete) == (7, True), "the same shards count once"
    assert [guess.by_text for guess in guesses] == ["circle", "yes", "no", "circle", "circle"]
    assert [guess.by_kind for guess in guesses] == ["circle", "no", "no", "circle", "circle"]
    assert [guess.image_seen for guess in guesses] == [True, False, True, False, False]
    assert [guess.question_seen for guess in guesses] == [True, False, False, True, False]


def test_limit_says_that_not_all_were_read(tmp_path: Path):
    write_shards(TRAINING, tmp_path / "train", ShardConfig(samples_per_shard=2))
    for limit, complete in ((3, False), (7, True)):
        _, samples, is_complete = guess_answers(TRAINING, [str(tmp_path / "train")], limit=limit)
        assert (samples, is_complete) == (limit, complete)
