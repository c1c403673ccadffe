"""Brings the trainer's weights to engines that are Ray actors, and finds out which engines did not get them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread
from typing import Any, Protocol
from weakref import WeakSet

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from rl.config import EngineConfig, RLConfig
from rl.placement.actors import WATCH_SECONDS, take_reply
from rl.placement.engines import build_engine_calls
from rl.placement.places import Placement
from rl.placement.plan import Plan
from rl.rollout.calls import EngineCalls, EngineDied, Resent
from rl.weight_sync.layout import WeightError, WeightMismatch

GRACE_SECONDS = 10.0
"""Beyond engine.transfer_timeout, in which a process that waited so long says so."""
ATTEMPTS = 3
"""Transfers that may break on an engine that still answers, before it is replaced."""
Outcome = EngineDied | WeightError | None
"""How a call of an engine ended: it must be replaced, it can be asked again, or it did as asked."""


def choose_transfer(config: RLConfig, plan: Plan) -> RLConfig:
    """Returns the config with auto replaced by how weights reach the engines where the plan puts them.

    Raises:
        ValueError: shared memory is asked for, and an engine is on another machine than the trainer's rank 0.
    """
    way, others = config.engine.weight_transfer, sorted({*plan.engines} - {plan.trainers[0]})
    if way == "shared_memory" and others:
        raise ValueError(
            f"engine.weight_transfer=shared_memory reaches engines on {plan.trainers[0]} alone, the machine of the "
            f"trainer's rank 0, and {', '.join(others)} would have some; use auto or collective"
        )
    if way != "auto":
        return config
    way = "collective" if others else "shared_memory"
    return replace(config, engine=replace(config.engine, weight_transfer=way))


class Trainers(Protocol):
    """The methods of TrainerGroup that a transfer calls. All raise RankError when a trainer has died."""

    def check_alive(self) -> None: ...

    def open_sender(self) -> dict[str, Any]: ...

    def join_engines(self, generation: int, num_ranks: int) -> str: ...

    def send_weights(self, version: int) -> str: ...


class WeightTransfer:
    """Gives engines the weights of a version; the trainer sends while the engines receive."""

    def __init__(self, trainers: Trainers, config: EngineConfig) -> None:
        """Takes a config whose `weight_transfer` is not auto: trainers and engines must use the same."""
        self._trainers, self._config = trainers, config
        self._collective = config.weight_transfer == "collective"
        self._place: dict[str, Any] = {}
        self._started = WeakSet[ActorHandle]()  # those that were replaced go
        self._members: list[ActorHandle] = []  # engines that have joined
        self._generation = 0
        self._version: int | None = None  # what shared memory holds

    def update(self, engines: Sequence[ActorHandle], version: int) -> list[EngineDied | None]:
        """Returns for each engine None, or why it must be replaced.

        Engines that answer and did not get all weights are sent them again.

        Raises:
            WeightMismatch: the weights are not those of the engines' model.
            RankError: a trainer has died.
        """
        outcomes = self._await_start(engines)
        pending = [engine for engine in engines if outcomes[engine] is None]
        for _ in range(ATTEMPTS):
            if not pending:
                break
            outcomes |= self._attempt(pending, version)
            pending = [engine for engine in pending if isinstance(outcomes[engine], WeightError)]
        return [_as_death(outcomes[engine]) for engine in engines]

    def resend(self, engines: Sequence[ActorHandle], version: int) -> list[Resent]:
        """Sends engines the weights of a version that they should have; returns their tensors before and after."""
        before = self._digest(engines)
        self._version = None  # else what shared memory holds would not be sent anew
        died = self.update(engines, version)
        after = self._digest(engines)
        return [_pair(*row) for row in zip(died, before, after, strict=True)]

    def _digest(self, engines: Sequence[ActorHandle]) -> list[dict[str, str] | str]:
        """Returns the digests of each engine's tensors, or why it gave none."""
        replies: list[ray.ObjectRef] = [
            engine.call.remote(lambda engine: engine.digest_tensors()) for engine in engines
        ]
        limit = self._config.transfer_timeout + GRACE_SECONDS
        late = set(ray.wait(replies, num_returns=len(replies), timeout=limit)[1]) if replies else set()
        return [
            f"it did not answer for {limit:.0f} s" if reply in late else _read(reply) for reply in replies
        ]

    def _await_start(self, engines: Sequence[ActorHandle]) -> dict[ActorHandle, Outcome]:
        """Waits until engines that were never seen have started, as long as the trainers live."""
        new = {engine: engine.is_ready.remote() for engine in engines if engine not in self._started}
        replies: list[ray.ObjectRef] = list(new.values())
        limit = self._config.start_timeout
        deadline = time.monotonic() + limit
        while replies and ray.wait(replies, num_returns=len(replies), timeout=WATCH_SECONDS)[1]:
            self._trainers.check_alive()
            if time.monotonic() > deadline:
                break
        ready = set(ray.wait(replies, num_returns=len(replies), timeout=0)[0]) if replies else set()
        late = EngineDied(f"it did not start within {limit:g} s (engine.start_timeout)")
        started = {engine: self._take(reply) if reply in ready else late for engine, reply in new.items()}
        outcomes = dict.fromkeys(engines, None) | started
        self._started.update(engine for engine in engines if outcomes[engine] is None)
        return outcomes

    def _attempt(self, engines: Sequence[ActorHandle], version: int) -> dict[ActorHandle, Outcome]:
        """Opens the way to these engines, where it is not open, and sends once."""
        if not self._place:
            self._place = self._trainers.open_sender()
        outcomes = self._join_group(engines) if self._collective else self._open_memory(engines)
        joined = [engine for engine in engines if outcomes[engine] is None]
        if joined:
            outcomes |= self._send(joined, version)
        lost = [engine for engine, outcome in outcomes.items() if outcome is not None]
        if lost:
            self._members = [] if self._collective else [e for e in self._members if e not in lost]
        if any(isinstance(outcome, WeightError) for outcome in outcomes.values()):
            self._version = None  # what shared memory holds may be the reason
        return outcomes

    def _open_memory(self, engines: Sequence[ActorHandle]) -> dict[ActorHandle, Outcome]:
        new = [engine for engine in engines if engine not in self._members]
        outcomes = self._collect({engine: engine.join_transfer.remote(self._place) for engine in new})
        self._members += [engine for engine in new if outcomes[engine] is None]
        return dict.fromkeys(engines, None) | outcomes

    def _join_group(self, engines: Sequence[ActorHandle]) -> dict[ActorHandle, Outcome]:
        """Opens a group of the trainer and these engines alone, unless it is open. Either all join or none."""
        if self._members == list(engines):
            return dict.fromkeys(engines, None)
        self._generation += 1
        tp, size = self._config.tp, 1 + len(engines) * self._config.tp
        joining = _start(lambda: self._trainers.join_engines(self._generation, size))
        group = self._place | {"generation": self._generation, "num_ranks": size}
        replies = {
            engine: engine.join_transfer.remote(group | {"first_rank": 1 + number * tp})
            for number, engine in enumerate(engines)
        }
        failure = joining.result()
        outcomes = self._collect(replies)
        if failure or any(outcome is not None for outcome in outcomes.values()):
            reason = failure or "another engine did not join"
            return {engine: outcome or WeightError(reason) for engine, outcome in outcomes.items()}
        self._members = list(engines)
        return outcomes

    def _send(self, engines: Sequence[ActorHandle], version: int) -> dict[ActorHandle, Outcome]:
        """Sends the weights, unless shared memory holds them already."""
        sends = self._collective or self._version != version
        sending = _start(lambda: self._trainers.send_weights(version)) if sends else None
        replies = {engine: engine.update_weights.remote(version) for engine in engines}
        failure = sending.result() if sending else ""
        outcomes = self._collect(replies)
        self._version = None if failure else version
        if failure and self._collective:
            self._members = []
        return outcomes

    def _collect(self, replies: Mapping[ActorHandle, ray.ObjectRef]) -> dict[ActorHandle, Outcome]:
        """Waits for the replies of engines, but not without end."""
        limit = self._config.transfer_timeout + GRACE_SECONDS
        waiting = list(replies.values())
        late = set(ray.wait(waiting, num_returns=len(waiting), timeout=limit)[1]) if waiting else set()
        hung = EngineDied(f"it did not answer for {limit:.0f} s (engine.transfer_timeout)")
        return {engine: hung if reply in late else self._take(reply) for engine, reply in replies.items()}

    def _take(self, reply: ray.ObjectRef) -> Outcome:
        try:
            take_reply(reply)
        except EngineDied as died:
            return died
        except WeightMismatch:
            raise
        except WeightError as error:
            return error
        except RayTaskError as error:  # also what a worker of a tensor-parallel engine raised
            return EngineDied(str(error.cause).splitlines()[0])
        return None


def connect_engines(config: RLConfig, placement: Placement, trainers: Trainers) -> EngineCalls:
    """Returns the functions that start engines, ask them, and give them the trainers' weights."""
    transfer = WeightTransfer(trainers, config.engine)
    return build_engine_calls(
        config, placement, update=transfer.update, resend=transfer.resend, watch=trainers.check_alive
    )


def _start(call: Callable[[], str]) -> Future[str]:
    """Runs a call beside this thread; the end of the program does not wait for it."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whatever it is, the result is waited for
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _pair(death: EngineDied | None, before: dict[str, str] | str, after: dict[str, str] | str) -> Resent:
    if death:
        return str(death)
    if isinstance(before, str):
        return before
    return after if isinstance(after, str) else (before, after)


def _read(reply: ray.ObjectRef) -> dict[str, str] | str:
    try:
        return take_reply(reply)
    except (EngineDied, RayTaskError, ValueError, OSError) as error:  # these two are what the engine raised
        return str(error).partition("\n")[0] or type(error).__name__


def _as_death(outcome: Outcome) -> EngineDied | None:
    return EngineDied(str(outcome)) if isinstance(outcome, WeightError) else outcome
