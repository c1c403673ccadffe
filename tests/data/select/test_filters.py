"""Filters: hand-counted runs of words, MMFineReason's rules one by one, presets, and values that are needed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from data_pipeline.select.config import FILTER_PRESETS, FilterConfig
from data_pipeline.select.filters import (
    apply_filters,
    build_filters,
    check_mmfinereason_template,
    check_repetition,
    check_think_answer,
)
from data_pipeline.types import Sample
from tests.helpers.alike import ask


def respond(response: str, **metadata) -> Sample:
    return ask("q1", "What?", response=response, **metadata)


def reasons(config: FilterConfig, *samples: Sample) -> list[str]:
    """Returns for each sample the reason of its drop, "" where it is kept."""
    dropped: dict[str, str] = {}
    numbered = [replace(sample, id=f"{i}") for i, sample in enumerate(samples)]
    kept = apply_filters(numbered, build_filters(config), lambda s, why: dropped.update({s.id: why}))
    ids = [sample.id for sample in kept]
    assert sorted([*ids, *dropped]) == sorted(sample.id for sample in numbered)
    return [dropped.get(sample.id, "") for sample in numbered]


def words(start: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(start, start + count))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{words(0, 50)} x {words(0, 50)} y {words(0, 50)}", "repetition"),  # three times
        (f"{words(0, 50)} x {words(0, 50)} y {words(0, 49)}", ""),  # the third lacks its last word
        (f"{words(0, 50)} x {words(0, 50)}", ""),  # twice
        (" ".join(["so"] * 52), "repetition"),  # 52 words: 3 runs of 50, which overlap
        (" ".join(["so"] * 51), ""),  # 2 runs
        (words(0, 5000), ""),
        ("", ""),
    ],
)
def test_repetition_is_a_run_of_50_words_three_times(text: str, reason: str):
    assert check_repetition(respond(text)) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"<think>{words(0, 3)} x {words(0, 3)}</think>{words(0, 3)}", ""),  # the third is not in the thought
        (f"<think>{words(0, 3)} x {words(0, 3)} {words(0, 3)}</think>4", "repetition"),
        (f"<think>{words(0, 3)} {words(0, 3)} {words(0, 3)}</think>", "repetition"),  # tags are not words
        (f"{words(0, 3)} x {words(0, 3)} {words(0, 3)}</think>4", "repetition"),  # the template opened it
        (f"x</think>{words(0, 3)} {words(0, 3)} {words(0, 3)}", ""),
        (
            f"<answer>{words(0, 3)} {words(0, 3)}</answer> {words(0, 3)}",
            "repetition",
        ),  # no thought: all of it
    ],
)
def test_repetition_is_counted_in_the_thought_only(text: str, reason: str):
    assert check_repetition(respond(text), num_words=3, count=3) == reason


def test_nan_passes_no_filter():
    sample = respond("x", pass_rate=math.nan, accuracy=math.nan)
    for config, reason in (
        (dict(min_pass_rate=0.0), "pass_rate"),
        (dict(max_pass_rate=1.0), "pass_rate"),
        (dict(correct=True), "wrong"),
    ):
        assert reasons(FilterConfig(**config), sample) == [reason]


def test_repetition_with_another_length_and_count():
    assert check_repetition(respond("a b c a b c"), num_words=3, count=2) == "repetition"
    assert check_repetition(respond("a b c a b d"), num_words=3, count=2) == ""


GOOD = "<think>a thought</think>Therefore, the final answer is <answer>4</answer>."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, ""),
        (f"{GOOD} or <answer>5</answer>", ""),  # several answers are fine
        (GOOD.replace("<think>", ""), "format"),
        (GOOD + "<think>more</think>", "format"),
        ("</think>a<think><answer>4</answer>", "format"),
        ("<think>it is <answer>4</answer></think>four", "format"),  # none outside of the thought
        ("<think>it is <answer>4</answer></think><answer>4</answer>", ""),
        ("<think>it is <answer>4</think><answer>4</answer>", "format"),  # not paired
        ("<think>a</think><answer>4", "format"),
        ("<think>a</think></answer>4<answer>", "format"),
        ("<think>[ERROR] timeout</think><answer>4</answer>", "error"),
    ],
)
def test_mmfinereason_template(text: str, reason: str):
    assert check_mmfinereason_template(respond(text)) == reason


@pytest.mark.parametrize("source", ["VisualWebInstruct(filtered)", "LLaVA-CoT", "ai2d_merged", "llava_cot"])
def test_some_corpora_need_no_answer_tags(source: str):
    assert check_mmfinereason_template(respond("<think>a</think>A sentence.", source=source)) == ""
    assert check_mmfinereason_template(respond("A sentence.", source=source)) == "format"
    assert check_mmfinereason_template(respond("<think>a</think>A sentence.", source="mmk12")) == "format"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>a</think><answer>4</answer>", ""),
        (" <think>a\nb</think>\n<answer>4</answer>\n", ""),
        ("<think>a</think>so <answer>4</answer>", "format"),
        ("<think> </think><answer>4</answer>", "format"),
        ("<think>a</think><answer></answer>", "format"),
        ("<think>a</think><answer>4</answer><answer>5</answer>", "format"),
        ("<answer>4</answer>", "format"),
        ("", "format"),
    ],
)
def test_think_answer(text: str, reason: str):
    assert check_think_answer(respond(text)) == reason


def test_all_filters_are_off_by_default():
    junk = ask("q", "?", *[b""] * 9, response="so " * 90, answer="x" * 900, pass_rate=0.0, accuracy=0.0)
    for config in (FilterConfig(), FILTER_PRESETS["openmmreasoner"]):
        assert not build_filters(config)
    assert reasons(FilterConfig(), junk) == [""]


def test_each_filter_gives_its_reason():
    text = respond(words(0, 10), pass_rate=0.5, accuracy=0.0)
    for config, reason in (
        (dict(min_words=10, max_words=10), ""),
        (dict(min_words=11), "length"),
        (dict(max_words=9), "length"),
        (dict(min_pass_rate=0.5, max_pass_rate=0.5), ""),
        (dict(max_pass_rate=0.25), "too_easy"),
        (dict(min_pass_rate=0.75), "too_hard"),
        (dict(correct=True), "wrong"),
        (dict(format="think_answer"), "format"),
        (dict(repetition_words=1, repetition_count=2), ""),
    ):
        assert reasons(FilterConfig(**config), text) == [reason], config
    long = ask("q", "?", b"", b"", answer="x" * 51)
    assert reasons(FilterConfig(max_answer_chars=50), long) == ["answer_length"]
    assert reasons(FilterConfig(max_images=1), long) == ["images"]
    assert reasons(FilterConfig(max_images=2, max_answer_chars=51), long) == [""]


def test_mmfinereason_presets_select_the_published_subsets():
    def trace(pass_rate: float, *, accuracy: float = 1.0, num_words: int = 100, count: int = 1) -> Sample:
        thought = " ".join([words(0, num_words - 1)] * count)
        text = f"<think>{thought}</think> <answer>4</answer>"
        return respond(text, pass_rate=pass_rate, accuracy=accuracy)

    samples = [
        trace(1.0), trace(0.75), trace(0.25), trace(0.0),
        trace(0.0, accuracy=0.0), trace(0.0, num_words=90), trace(0.0, count=3),
    ]  # fmt: skip
    kept = ["too_easy", "", "", "", "wrong", "length", "repetition"]
    assert reasons(FILTER_PRESETS["mmfinereason"], *samples) == kept
    hardest = ["too_easy", "too_easy", "too_easy", "", "wrong", "length", "repetition"]
    assert reasons(FILTER_PRESETS["mmfinereason_hardest"], *samples) == hardest


def test_a_length_of_exactly_100_words_is_kept():
    text = f"<think>{words(0, 99)}</think> <answer>4</answer>"
    assert len(text.split()) == 100
    assert reasons(FilterConfig(min_words=100), respond(text), respond(text.replace("w0 ", ""))) == [
        "",
        "length",
    ]


def test_a_response_not_equivalent_is_wrong():
    """The published verifier finds EQUIVALENT in any judgement, and 1 in 15; here the checker's word counts."""
    from data_pipeline.verify.check import check_answer

    for answer, reference in (("15", "1"), ("not equivalent", "equivalent"), ("1", "15")):
        verdict = check_answer(f"<think>a</think><answer>{answer}</answer>", reference)
        sample = respond("<think>a</think><answer>4</answer>", accuracy=verdict.accuracy)
        assert reasons(FilterConfig(correct=True), sample) == ["wrong"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (dict(correct=True), "accuracy"),
        (dict(max_pass_rate=0.5), "pass_rate"),
    ],
)
@pytest.mark.parametrize("value", [None, "0.5", True])
def test_missing_value_names_the_command_that_provides_it(config: dict, name: str, value):
    sample = respond("x") if value is None else respond("x", **{name: value})
    with pytest.raises(ValueError, match=f"'0' has metadata {name}={value!r}.* provides"):
        reasons(FilterConfig(**config), sample)


@pytest.mark.parametrize(
    "config",
    [
        dict(min_words=-1),
        dict(min_words=5, max_words=4),
        dict(repetition_words=0),
        dict(repetition_count=1),
        dict(min_pass_rate=1.5),
        dict(max_pass_rate=-0.1),
        dict(max_pass_rate=math.nan),
        dict(min_pass_rate=0.5, max_pass_rate=0.25),
        dict(max_images=-1),
    ],
)
def test_invalid_settings_are_refused(config: dict):
    with pytest.raises(ValueError, match="filters."):
        FilterConfig(**config)
