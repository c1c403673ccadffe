"""Which teachers are asked a question."""

from __future__ import annotations

import pytest

from data_pipeline.distill.assignment import draw_teacher, exclude, is_asked
from data_pipeline.distill.config import AssignConfig, DistillConfig, TeacherConfig

IDS = [f"q{number}" for number in range(4_000)]


def asked(assign: AssignConfig, id: str = "q", count: int = 3, **known: object) -> list[int]:
    """Returns the numbers of the teachers that are asked."""
    return [n for n in range(count) if is_asked(assign, n, count, id, **known)]  # pyright: ignore


def test_all_are_asked_and_a_cascade_ends_at_the_first_right_response():
    assert asked(AssignConfig()) == asked(AssignConfig(), solved=True) == [0, 1, 2]
    cascade = AssignConfig(way="cascade")
    assert asked(cascade) == [0, 1, 2] and asked(cascade, solved=True) == []


def test_shares_draw_one_teacher_a_question():
    assign = AssignConfig(way="shares", shares=(3.0, 0.0, 1.0))
    found = [asked(assign, id) for id in IDS]
    assert all(len(each) == 1 for each in found) and [1] not in found
    assert found.count([0]) / len(IDS) == pytest.approx(0.75, abs=0.03)
    assert found == [[draw_teacher(id, assign.shares)] for id in IDS], "the same in every run"
    even = [asked(AssignConfig(way="shares"), id)[0] for id in IDS]
    assert all(even.count(n) / len(IDS) == pytest.approx(1 / 3, abs=0.03) for n in range(3))


def test_pass_rate_chooses_the_teacher():
    assign = AssignConfig(way="by_pass_rate", thresholds=(0.75, 0.25))
    rates = {1.0: [0], 0.75: [0], 0.5: [1], 0.25: [1], 0.0: [2], None: []}
    assert {rate: asked(assign, rate=rate) for rate in rates} == rates


@pytest.mark.parametrize("way", ["all", "cascade"])
def test_easy_and_unscored_questions_are_not_asked(way: str):
    assign = AssignConfig(way=way, max_pass_rate=0.25)  # pyright: ignore
    assert asked(assign, rate=0.25) == [0, 1, 2]
    assert asked(assign, rate=0.5) == asked(assign, rate=None) == []
    assert [exclude(assign, rate) for rate in (0.25, 0.5, None)] == ["", "too_easy", "unscored"]


def teachers(*names: str) -> tuple[TeacherConfig, ...]:
    return tuple(TeacherConfig(name=name) for name in names)


@pytest.mark.parametrize(
    ("names", "assign", "words"),
    [
        ((), {}, "there must be at least one"),
        (("a", ""), {}, r"names \['a', ''\]; .* each of several needs another name"),
        (("a", "a"), {}, "each of several needs another name"),
        (("a", "b"), {"way": "shares", "shares": (1.0,)}, r"shares=\(1.0,\) must be 2 weights"),
        (("a", "b"), {"way": "shares", "shares": (0.0, 0.0)}, "one of them above 0"),
        (("a", "b", "c"), {"way": "by_pass_rate", "thresholds": (0.2, 0.5)}, "must be 2 falling pass rates"),
        (("a", "b"), {"way": "by_pass_rate"}, r"thresholds=\(\) must be 1 falling"),
        (("a", "b"), {"shares": (1.0, 2.0)}, "shares is set, but assign.way=all; it needs shares"),
        (("a",), {"max_pass_rate": 2.0}, "max_pass_rate=2 must be a share"),
    ],
)
def test_wrong_settings_are_named(names: tuple[str, ...], assign: dict, words: str):
    with pytest.raises(ValueError, match=words):
        DistillConfig(shards="in", out="out", teachers=teachers(*names), assign=AssignConfig(**assign))


def test_teachers_with_a_name_have_folders_of_their_own():
    two = DistillConfig(shards="in", out="out", teachers=teachers("a", "b"), keep="likeliest")
    assert [ask.out for ask in two.asks] == ["out/teachers/a", "out/teachers/b"]
    assert all(ask.teacher.logprobs for ask in two.asks)
    (one,) = DistillConfig(shards="in", out="out").asks
    assert one.out == "out" and not one.teacher.logprobs
