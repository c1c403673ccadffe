"""Settings of a teacher."""

from __future__ import annotations

import pytest

from data_pipeline.distill.config import TEACHER_SYSTEM_PROMPT, DistillConfig, TeacherConfig
from data_pipeline.served.config import JudgeConfig
from data_pipeline.types import SYSTEM_PROMPT
from data_pipeline.verify.config import CheckerConfig


def test_teachers_prompt_is_the_students_with_three_words_more():
    assert SYSTEM_PROMPT.replace("two parts:", "two parts and nothing else:") == TEACHER_SYSTEM_PROMPT


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("k", 0, "at least 1"),
        ("max_tokens", 0, "at least 1"),
        ("temperature", -1.0, "at least 0"),
        ("top_p", 1.5, "at most 1"),
        ("max_failures", -1, "at least 0"),
        ("extra_body", "[1]", "must be a JSON object"),
        ("extra_body", "{top_k: 1}", "is not JSON"),
        ("extra_body", '{"n": 4}', "sets n"),
    ],
)
def test_wrong_settings_are_named(field: str, value: object, words: str):
    with pytest.raises(ValueError, match=words):
        TeacherConfig(**{field: value})  # pyright: ignore


def test_at_least_one_response_is_kept_of_a_question():
    with pytest.raises(ValueError, match="at least 1"):
        DistillConfig(shards="in", out="out", per_question=0)


def test_checked_by_names_mode_and_judge():
    released = CheckerConfig(mode="released")
    judge = JudgeConfig(base_url="http://host/v1")
    assert TeacherConfig(checker=released).checked_by == "released"
    assert TeacherConfig(checker=released, judge=judge).checked_by == "released+http://host/v1"
    named = JudgeConfig(base_url="http://host/v1", model="m")
    assert TeacherConfig(judge=named).checked_by == "strict+m"
