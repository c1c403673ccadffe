"""An engine's thread takes requests and calls between steps; a fake in vLLM's place says what it did and when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from data_pipeline.failures import RankError
from rl.config import RLConfig, SamplingConfig
from rl.rollout import server as server_module
from rl.rollout.calls import EngineCalls, EngineDied, Report, Request
from rl.rollout.manager import RolloutManager
from rl.rollout.server import EngineServer
from rl.types import Responses
from tests.helpers.groups import make_prompt
from tests.helpers.processes import wait_until

CONFIG = RLConfig(run="", model="", shards="")


class StepByStep:
    """Has two slots, and finishes the oldest prompt with each step that it may make."""

    slots = 2
    version: int | None = 0
    steps = 0  # that it may make
    fails = False

    def __init__(self, config: RLConfig) -> None:
        engines.append(self)
        self.open: list[int] = []
        self.taken = 0

    @property
    def is_busy(self) -> bool:
        return bool(self.open)

    def add(self, number: int, request: Request) -> Responses | None:
        self.taken += 1
        if request.sampling.temperature != 1:
            raise ValueError("another temperature")
        if request.prompt.ref.id == "13":
            return Responses(fault="image")
        self.open.append(number)
        return None

    def step(self) -> list[tuple[int, Responses]]:
        if self.fails:
            raise LookupError("vLLM's fault")
        if not self.steps or not self.open:
            time.sleep(0.001)
            return []
        self.steps -= 1
        return [(self.open.pop(0), Responses())]

    def update_weights(self, version: int) -> None:
        self.version = None
        if version == 13:
            raise ConnectionError("not all arrived")
        self.version = version

    def report(self) -> Report:
        running = min(self.slots, len(self.open))
        return Report(
            taken=self.taken,
            running=running,
            waiting=len(self.open) - running,
            tokens=0,
            version=self.version,
        )


engines: list[StepByStep] = []


@pytest.fixture
def server() -> Iterator[EngineServer]:
    engines.clear()
    yield EngineServer(CONFIG, cast(Any, StepByStep))
    engines[0].fails = True  # ends the thread


def request(number: int, temperature: float = 1.0) -> tuple[int, Request]:
    sampling = SamplingConfig(n=1, temperature=temperature, max_tokens=8)
    return number, Request(prompt=make_prompt(number), sampling=sampling, seed=0)


def test_reports_come_as_soon_as_there_is_something_to_tell(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "COLLECT_SECONDS", 30.0)
    started = time.monotonic()
    assert server.collect().taken == 0  # that it has started
    server.submit([request(number) for number in range(4)])
    engines[0].steps = 1
    first = server.collect()
    assert ([number for number, _ in first.finished], first.running, first.waiting) == ([0], 2, 1)
    engines[0].steps = 1
    assert [number for number, _ in server.collect().finished] == [1]
    server.submit([request(4, temperature=0.5), request(13)])
    wait_until(lambda: engines[0].taken == 6)
    (_, error), (_, fault) = server.collect().finished
    assert str(error) == "another temperature" and fault == Responses(fault="image")
    assert time.monotonic() - started < 15
    monkeypatch.setattr(server_module, "COLLECT_SECONDS", 0.05)
    assert server.collect().finished == []  # nothing has happened


def test_single_free_slots_are_not_told_before_there_is_something_else(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the last prompts of a step end, each of thousands of responses would make a report."""
    room = CONFIG.engine.max_num_seqs // server_module.ROOM_SHARE
    assert room > 1
    engines[0].slots = 3 * room
    server.submit([request(number) for number in range(3 * room)])
    wait_until(lambda: engines[0].taken == 3 * room)
    server.collect()
    for free, seconds, at_least in (
        (1, 0.2, 0.2),
        (room, 30.0, 0.0),
    ):  # responses of prompts that have others
        monkeypatch.setattr(server_module, "COLLECT_SECONDS", seconds)
        started, running = time.monotonic(), len(engines[0].open)
        del engines[0].open[-free:]
        assert server.collect().running == running - free
        assert at_least <= time.monotonic() - started < 15


def test_update_falls_between_steps_and_one_that_failed_holds_all_until_the_next(
    server: EngineServer,
) -> None:
    server.submit([request(0)])
    wait_until(lambda: engines[0].taken)
    with pytest.raises(ConnectionError):
        server.update_weights(13)
    server.submit([request(1)])
    engines[0].steps = 9
    wait_until(lambda: server.collect().version is None)
    time.sleep(0.05)
    assert engines[0].steps == 9 and engines[0].taken == 1
    server.update_weights(2)
    finished: list[int] = []
    wait_until(lambda: finished.extend(n for n, _ in server.collect().finished) or len(finished) == 2)
    assert finished == [0, 1] and server.collect().version == 2


def test_engine_that_raises_while_it_generates_has_died_for_those_who_collect_and_call(
    server: EngineServer,
) -> None:
    engines[0].fails = True
    server.submit([request(0)])
    with pytest.raises(EngineDied, match="it could generate no more: LookupError: vLLM's fault"):
        wait_until(lambda: server.collect() is None)
    with pytest.raises(EngineDied):
        server.update_weights(1)


@pytest.mark.parametrize("num_broken", [2, 99])
def test_engine_that_raises_is_replaced_until_too_many_have(
    num_broken: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "COLLECT_SECONDS", 0.02)
    engines.clear()
    servers: list[EngineServer] = []

    def start() -> EngineServer:
        servers.append(EngineServer(CONFIG, cast(Any, StepByStep)))
        engines[-1].steps, engines[-1].fails = 9, len(servers) <= num_broken
        return servers[-1]

    def poll(seconds: float) -> list[tuple[EngineServer, Report | Exception]]:
        try:
            return [(servers[-1], servers[-1].collect())]
        except EngineDied as died:
            return [(servers[-1], died)]

    calls = EngineCalls(
        start=start,
        stop=lambda engine: None,
        submit=lambda engine, requests: engine.submit(requests),
        poll=poll,
        update=lambda servers, version: [None for _ in servers],
    )
    manager = RolloutManager(calls, CONFIG.engine, threaded=False)
    futures = manager.submit([request(number)[1] for number in range(3)])
    if num_broken == 2:
        manager.wait(futures)
        assert manager.restarts == 2 and [future.result() for future in futures] == [Responses()] * 3
    else:
        with pytest.raises(RankError, match="4 engines died.*LookupError: vLLM's fault"):
            manager.wait(futures)
        assert len(servers) == 4
    assert "died: it could generate no more: LookupError: vLLM's fault" in caplog.text
    manager.close()
    engines[-1].fails = True  # ends the thread
    servers[-1].submit([request(9)])


def test_engine_that_cannot_start_says_why() -> None:
    def fail(config: object) -> Any:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        EngineServer(CONFIG, fail)
