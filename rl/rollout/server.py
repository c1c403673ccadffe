"""Serves an engine that generates without a break: a thread of its own feeds vLLM and steps it.

Nothing else touches vLLM, so that weights are updated between two steps. Other threads, those of a Ray actor, hand over
requests and calls, and take reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any, TypeVar

from rl.config import EvalConfig, RLConfig
from rl.rollout.calls import EngineDied, Report, Request
from rl.rollout.device import Tag
from rl.rollout.engine import Engine
from rl.types import Responses

R = TypeVar("R")

COLLECT_SECONDS = 1.0
"""After which an engine reports although nothing has happened; longer with over 100 engines: the driver takes all."""
ENGINES_A_SECOND = 100
"""That report although nothing has happened."""
ROOM_SHARE = 16
"""An engine reports free slots that no response waits for once they are 1/16 of all."""
THREADS = 8
"""Calls that an actor takes at the same time: more than can wait for the engine."""


class EngineServer:
    """The methods of an engine as a Ray actor; all but `submit` wait for their results."""

    def __init__(
        self, config: RLConfig | EvalConfig, build: Callable[[RLConfig | EvalConfig], Engine] = Engine
    ) -> None:
        """Starts the engine, as Engine does."""
        self._changed = Condition()  # guards all below
        self._requests: list[tuple[int, Request]] = []
        self._calls: list[tuple[Callable[[Engine], Any], Future[Any]]] = []
        self._finished: list[tuple[int, Responses | Exception]] = []
        self._report = Report(taken=0, running=0, waiting=0, tokens=0, version=0)
        self._reported = -1  # responses that were to do at the last report
        self._room = max(1, config.engine.max_num_seqs // ROOM_SHARE)
        self._patience = max(1.0, config.engine.num_engines / ENGINES_A_SECOND)
        self._failure: EngineDied | None = None
        started: Future[None] = Future()
        Thread(target=self._run, args=(lambda: build(config), started), name="engine", daemon=True).start()
        started.result()

    def is_ready(self) -> bool:
        """Returns True: an actor answers once it has started."""
        return True

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Hands over requests; their numbers come back in reports."""
        with self._changed:
            self._requests.extend(requests)
            self._changed.notify_all()

    def collect(self) -> Report:
        """Returns what has happened since the last report; waits for something, but not for long.

        Raises:
            EngineDied: vLLM raised while it generated, as where memory runs out or one of its processes has died; the
                message says what. This engine generates no more.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._finished or self._failure or self._has_room(),
                COLLECT_SECONDS * self._patience,
            )
            if self._failure:
                raise self._failure
            finished, self._finished = self._finished, []
            report = self._report
            self._reported = report.running + report.waiting
        return Report(
            finished=finished,
            taken=report.taken,
            running=report.running,
            waiting=report.waiting,
            tokens=report.tokens,
            version=report.version,
        )

    def join_transfer(self, place: Mapping[str, Any]) -> None:
        """Engine.join_transfer, between two steps."""
        self.call(lambda engine: engine.join_transfer(place))

    def update_weights(self, version: int) -> None:
        """Engine.update_weights, between two steps. After one that failed the engine waits for the next."""
        self.call(lambda engine: engine.update_weights(version))

    def sleep(self) -> None:
        """Engine.sleep, between two steps."""
        self.call(lambda engine: engine.sleep())

    def wake_up(self, tag: Tag) -> None:
        """Engine.wake_up."""
        self.call(lambda engine: engine.wake_up(tag))

    def call(self, call: Callable[[Engine], R]) -> R:
        """Returns what the call returns; it is made between two steps.

        Raises:
            EngineDied: as collect().
            Exception: what the call raised.
        """
        done: Future[R] = Future()
        with self._changed:
            if self._failure:
                raise self._failure
            self._calls.append((call, done))
            self._changed.notify_all()
        return done.result()

    def _has_room(self) -> bool:
        """Returns True if enough slots got free that no waiting response takes, since the last report."""
        report = self._report
        return self._reported < 0 or report.waiting == 0 and self._reported - report.running >= self._room

    def _run(self, build: Callable[[], Engine], started: Future[None]) -> None:
        try:
            engine = build()
        except BaseException as error:  # whatever it is, the constructor raises it
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while True:
                self._serve(engine)
        except BaseException as error:  # whatever it is, those who call get it
            died = EngineDied(f"it could generate no more: {type(error).__name__}: {error}")
            died.__cause__ = error
            with self._changed:
                self._failure = died
                self._changed.notify_all()
                for _, done in self._calls:
                    done.set_exception(died)

    def _serve(self, engine: Engine) -> None:
        """Makes the calls that wait, then takes all requests, then a step; waits where there is none of them."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._calls or engine.version is not None and (self._requests or engine.is_busy)
            )
            calls, self._calls = self._calls, []
        for call, done in calls:
            _answer(call, engine, done)
        finished: list[tuple[int, Responses | Exception]] = []
        if engine.version is not None:
            with self._changed:
                requests, self._requests = self._requests, []
            finished += [found for number, request in requests if (found := _add(engine, number, request))]
            finished += engine.step()
        with self._changed:
            self._finished += finished
            self._report = engine.report()
            self._changed.notify_all()


def _answer(call: Callable[[Engine], R], engine: Engine, done: Future[R]) -> None:
    try:
        done.set_result(call(engine))
    except Exception as error:  # the caller's
        done.set_exception(error)


def _add(engine: Engine, number: int, request: Request) -> tuple[int, Responses | Exception] | None:
    """Returns a result if the engine does not generate for this request."""
    try:
        fault = engine.add(number, request)
    except ValueError as error:
        return number, error
    return (number, fault) if fault else None
