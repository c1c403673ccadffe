"""Who has the devices when, in which order they are left and taken, and what waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from threading import Thread
from typing import Any, cast

import pytest

from rl.placement.turns import SharingTrainers, Turns
from rl.rollout.calls import EngineCalls, EngineDied
from tests.helpers.processes import wait_until

EVERYTHING = "weights optimizer gradients"


class Remote:
    """A method of an engine as Ray has it, which writes down that it was called."""

    def __init__(self, log: list[str], name: str) -> None:
        self.remote: Callable[..., Any] = lambda *args: log.append(" ".join([name, *args]))


class Engine:
    def __init__(self, log: list[str]) -> None:
        self.sleep, self.wake_up = Remote(log, "engine sleeps"), Remote(log, "engine wakes")


class Trainers:
    turn = nullcontext

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def keep(self, kinds: Sequence[str]) -> None:
        self._log.append(f"trainer keeps {' '.join(kinds)}".rstrip())


class WrittenTurns(Turns):
    """Does not wait for engines."""

    def _on_engines(self, call: Callable[[Any], Any]) -> None:
        for engine in self._engines:
            call(engine)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def turns(log: list[str]) -> Turns:
    return WrittenTurns(cast(SharingTrainers, Trainers(log)))


@pytest.fixture
def calls(turns: Turns, log: list[str]) -> EngineCalls[Any]:
    def update(engines: Sequence[Engine], version: int) -> list[EngineDied | None]:
        log.append(f"weights {version}")
        return [None for _ in engines]

    calls: EngineCalls[Any] = EngineCalls(
        start=lambda: log.append("engine starts") or Engine(log),
        stop=lambda engine: log.append("engine ends"),
        submit=lambda engine, requests: log.append("asked"),
        poll=lambda seconds: [],
        update=update,
    )
    return turns.share(calls)


def test_who_leaves_does_so_before_the_others_come(
    turns: Turns, calls: EngineCalls[Any], log: list[str]
) -> None:
    engine = calls.start()
    assert log == ["trainer keeps weights", "trainer keeps", "engine starts"]
    for step in range(2):
        log.clear()
        with turns.of_trainer():
            log.append("trains")
        calls.update([engine], step)
        calls.submit(engine, [])
        calls.submit(engine, [])
        assert log == [
            "engine sleeps",
            f"trainer keeps {EVERYTHING}",
            "trains",
            "trainer keeps weights",
            "engine wakes weights",
            f"weights {step}",
            "trainer keeps",
            "engine wakes kv_cache",
            "asked",
            "asked",
        ]
    log.clear()
    calls.stop(engine)
    with turns.of_trainer():
        pass
    assert log == ["engine ends", f"trainer keeps {EVERYTHING}"]


def test_engine_among_others_that_generate_gets_weights_beside_them(
    calls: EngineCalls[Any], log: list[str]
) -> None:
    calls.submit(calls.start(), [])
    new = calls.start()
    log.clear()
    calls.update([new], 3)
    assert log == ["trainer keeps weights", "weights 3", "trainer keeps"]


def test_checkpoint_between_weights_and_the_next_step_brings_the_trainer_back(
    turns: Turns, calls: EngineCalls[Any], log: list[str]
) -> None:
    """An engine that is half awake cannot fall asleep: it takes all of its memory first."""
    engine = calls.start()
    with turns.of_trainer():
        pass
    calls.update([engine], 1)
    log.clear()
    with turns.of_trainer():
        log.append("saves")
    assert log == [
        "trainer keeps",
        "engine wakes kv_cache",
        "engine sleeps",
        f"trainer keeps {EVERYTHING}",
        "saves",
    ]


def test_engine_is_replaced_when_the_trainer_is_done(
    turns: Turns, calls: EngineCalls[Any], log: list[str]
) -> None:
    with turns.of_trainer():
        thread = Thread(target=calls.start)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and not log
    wait_until(lambda: "engine starts" in log)
