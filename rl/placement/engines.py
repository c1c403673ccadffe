"""The engines as Ray actors: what the rollout manager calls to start them, ask them and take their reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock

import ray
from ray.actor import ActorHandle

from rl.config import EvalConfig, RLConfig
from rl.placement.actors import choose_actor, take_reply
from rl.placement.places import Place, Placement
from rl.rollout.calls import EngineCalls, EngineDied, Report, Request, Resent
from rl.rollout.engine import ENGINE_ENV
from rl.rollout.server import THREADS, EngineServer

TOGETHER = 0.02
"""Seconds, at most, in which reports gather that are taken together: a look at 1,000 engines costs 1 to 2 ms."""
ENGINE_SECONDS = 50e-6
"""By which they grow with each engine."""


def build_engine_calls(
    config: RLConfig | EvalConfig,
    placement: Placement,
    *,
    update: Callable[[Sequence[ActorHandle], int], list[EngineDied | None]] = lambda engines, version: [],
    resend: Callable[[Sequence[ActorHandle], int], list[Resent]] = lambda engines, version: [],
    watch: Callable[[], object] = lambda: None,
    kind: type = EngineServer,
) -> EngineCalls[ActorHandle]:
    """Returns the manager's functions for engines that are Ray actors.

    Args:
        update: WeightTransfer.update; engines that keep the weights of the model folder need none.
        resend: WeightTransfer.resend; likewise.
        watch: called again and again while somebody waits for responses; what it raises ends the wait.
        kind: of the actors.
    """
    engines = EngineActors(config, placement, kind)
    return EngineCalls(
        start=engines.start,
        give_up=placement.give_up,
        stop=engines.stop,
        submit=engines.submit,
        poll=engines.poll,
        update=update,
        resend=resend,
        has_started=engines.has_started,
        address=engines.find_address,
        watch=watch,
    )


class EngineActors:
    """Engines, each with a call of EngineServer.collect under way. Any thread may call the methods."""

    def __init__(self, config: RLConfig | EvalConfig, placement: Placement, kind: type) -> None:
        self._config, self._placement, self._kind = config, placement, kind
        self._lock = Lock()  # guards all below
        self._places: dict[ActorHandle, Place] = {}
        self._reports: dict[ray.ObjectRef, ActorHandle] = {}  # that are to come
        self._started = set[ActorHandle]()

    def start(self) -> ActorHandle:
        place = self._placement.reserve_engine()
        engine = choose_actor(self._kind, place, ENGINE_ENV, max_concurrency=THREADS).remote(self._config)
        with self._lock:
            self._places[engine] = place
            self._reports[engine.collect.remote()] = engine
        return engine

    def stop(self, engine: ActorHandle) -> None:
        ray.kill(engine)
        with self._lock:
            place = self._places.pop(engine, None)
            self._started.discard(engine)
        if place:
            self._placement.release_engine(place)

    def submit(self, engine: ActorHandle, requests: Sequence[tuple[int, Request]]) -> None:
        engine.submit.remote(requests)

    def poll(self, seconds: float) -> list[tuple[ActorHandle, Report | Exception]]:
        """Returns the reports that are here; waits for the first, at most so long."""
        with self._lock:
            replies = list(self._reports)
        if not replies:
            time.sleep(seconds)
            return []
        if not ray.wait(replies, timeout=seconds)[0]:
            return []
        time.sleep(min(TOGETHER, ENGINE_SECONDS * len(replies)))
        arrived, _ = ray.wait(replies, num_returns=len(replies), timeout=0)
        return [self._take(reply) for reply in arrived]

    def has_started(self, engine: ActorHandle) -> bool:
        return engine in self._started

    def find_address(self, engine: ActorHandle) -> str:
        return self._places[engine].address

    def _take(self, reply: ray.ObjectRef) -> tuple[ActorHandle, Report | Exception]:
        """Returns a report and asks for the next; or what the engine raised, which the manager decides on."""
        with self._lock:
            engine = self._reports.pop(reply)
        try:
            report: Report = take_reply(reply)
        except Exception as error:
            return engine, error
        with self._lock:
            if engine in self._places:  # it was not stopped
                self._started.add(engine)
                self._reports[engine.collect.remote()] = engine
        return engine, report
