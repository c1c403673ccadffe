"""The model of an engine against one that decodes token by token, and against laws that hold for any queue."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale.engine import FakeEngine, Work
from benchmarks.scale.speed import PROMPT_TOKENS, Lengths, Speed, published_speed

SPEED = Speed(alone=0.01, context=1e-7, prefill=1e-4)


def decode_token_by_token(
    asked: list[tuple[float, list[int]]], speed: Speed, slots: int
) -> list[list[float]]:
    """Returns when each response ends, by prompts: prompts come at given times, and join between two steps."""
    ends = [[0.0] * len(lengths) for _, lengths in asked]
    waiting = [(i, j) for i, (_, lengths) in enumerate(asked) for j in range(len(lengths))]
    running: dict[tuple[int, int], int] = {}
    now = 0.0
    while waiting or running:
        if not running:
            now = max(now, asked[waiting[0][0]][0])
        while waiting and len(running) < slots and asked[waiting[0][0]][0] <= now:
            i, j = waiting.pop(0)
            running[i, j] = 0
            if j == 0:
                now += PROMPT_TOKENS * speed.prefill
        now += speed.alone + speed.context * sum(PROMPT_TOKENS + tokens for tokens in running.values())
        for i, j in list(running):
            running[i, j] += 1
            if running[i, j] == asked[i][1][j]:
                ends[i][j] = now
                del running[i, j]
    return ends


def advance(engine: FakeEngine, time: float) -> list[tuple[Work, float]]:
    """Moves an engine to `time`, or until it has nothing to do; returns what it finished, and when."""
    found = list[tuple[Work, float]]()
    while (end := engine.next_end()) <= time and end < math.inf:
        found += [(work, end) for work in engine.advance(end)]
    if time < math.inf:
        engine.advance(time)
    return found


def run(asked: list[tuple[float, list[int]]], slots: int) -> tuple[list[Work], list[float]]:
    """Returns the prompts, and when each was finished."""
    engine, works, found = FakeEngine(SPEED, slots), [Work(lengths) for _, lengths in asked], []
    for (time, _), work in zip(asked, works, strict=True):
        found += advance(engine, time)
        engine.add(work)
    found += advance(engine, math.inf)
    ends = {id(work): end for work, end in found}
    return works, [ends[id(work)] for work in works]


@settings(deadline=None, max_examples=40)
@given(
    times=st.lists(st.floats(0, 40), min_size=1, max_size=12),
    n=st.integers(1, 4),
    slots=st.integers(1, 8),
    seed=st.integers(0, 1_000),
)
def test_prompts_are_finished_when_they_are_token_by_token(
    times: list[float], n: int, slots: int, seed: int
) -> None:
    """A prompt that comes within a step joins at its end token by token, and at once in the model: one step each."""
    draw = random.Random(seed)
    asked = [(time, [draw.randint(20, 300) for _ in range(n)]) for time in sorted(times)]
    works, found = run(asked, slots)
    expected = [max(ends) for ends in decode_token_by_token(asked, SPEED, slots)]
    step = SPEED.alone + SPEED.context * slots * (PROMPT_TOKENS + 300)
    assert found == pytest.approx(expected, abs=step * (len(times) + 2), rel=2e-3)
    for work in works:
        assert sorted(work.ended) == list(range(n))
        assert [sum(tokens for _, tokens in spans) for spans in work.spans] == [
            work.lengths[number] for number in work.ended
        ]


def test_slots_hold_as_many_responses_as_littles_law_says() -> None:
    """Responses in the slots on average = responses a second times the seconds that each is there."""
    engine, lengths, rate = FakeEngine(SPEED, slots=16), Lengths(median=300, longest=5_000), 0.4
    works = {i: Work(lengths.draw(i, 1).tolist()) for i in range(400)}
    stays, most = 0.0, 0
    for i, work in works.items():
        stays += sum(end for _, end in advance(engine, i / rate))
        engine.add(work)
        stays -= i / rate
        most = max(most, engine.running)
        assert not engine.waiting
    stays += sum(end for _, end in advance(engine, math.inf))
    assert most > 3
    assert engine.used.slots == pytest.approx(stays)
    assert engine.used.tokens == pytest.approx(sum(sum(work.lengths) for work in works.values()))
    assert engine.used.decoding + engine.used.prefilling <= engine.now


def test_an_update_is_paid_by_what_runs_and_divides_the_tokens() -> None:
    speed = Speed(alone=0.01, context=0.0, prefill=1e-3)
    engine, work = FakeEngine(speed, slots=2, version=3), Work([1_000, 500])
    engine.add(work)
    start = PROMPT_TOKENS * speed.prefill
    engine.advance(start + 2.0)  # 200 tokens each
    engine.update(4)
    again = 2 * (PROMPT_TOKENS + 200) * speed.prefill
    assert engine.next_end() == pytest.approx(start + 2.0 + again + 3.0)
    assert engine.advance(1e9) == [work]
    assert work.ended == [1, 0]
    assert work.spans == [((3, 200), (4, 300)), ((3, 200), (4, 800))]
    assert engine.used.prefilling == pytest.approx(start + again)


def test_lengths_and_speed_are_those_that_were_published() -> None:
    lengths = [length for seed in range(3_000) for length in Lengths().draw(seed, 16)]
    lengths.sort()
    assert sum(lengths) / len(lengths) == pytest.approx(2_910, rel=0.06)
    assert lengths[len(lengths) // 2] == pytest.approx(2_038, rel=0.06)
    assert lengths[len(lengths) * 95 // 100] == pytest.approx(8_207, rel=0.06)
    assert max(lengths) == 28_696
    speed = published_speed()
    assert (
        0.0046 < speed.alone < 0.01
    )  # 4.6 ms of an 8B model at concurrency 1, by NVIDIA, without vLLM's own time
    saturated = 256 / (speed.alone + speed.context * 256 * 3_255)
    assert (
        8_000 < saturated < 12_965
    )  # tokens/s of an 8B model at concurrency 250, by NVIDIA, with short responses
