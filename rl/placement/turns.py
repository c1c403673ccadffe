"""Whose turn it is on devices that trainer and engines share: one computes, the other has left them (colocated).

The turns go round: the trainer has the devices; it keeps its weights there and sends them to the engines, whose weights
are back; the engines have the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, Protocol

import ray
from ray.actor import ActorHandle

from rl.config import RLConfig
from rl.placement import transfer
from rl.placement.actors import take_reply
from rl.placement.places import Placement
from rl.placement.transfer import Trainers
from rl.rollout.calls import EngineCalls, EngineDied, Request

if TYPE_CHECKING:  # torch and Megatron are for the trainer's processes
    from megatron_omr.swap.offload import Kind

START_SECONDS = 3600.0
"""Within which an engine must have started, and done what was asked; one that has not is killed."""
EVERYTHING: tuple[Kind, ...] = ("weights", "optimizer", "gradients")


class SharingTrainers(Trainers, Protocol):
    """What turns need of a TrainerGroup."""

    turn: Callable[[], AbstractContextManager[None]]

    def keep(self, kinds: Sequence[Kind]) -> None: ...


def connect_engines(config: RLConfig, placement: Placement, trainers: SharingTrainers) -> EngineCalls:
    """Returns transfer.connect_engines; of engines that share the trainer's devices those that wait for their turn."""
    calls = transfer.connect_engines(config, placement, trainers)
    if config.rollout.placement == "separate":
        return calls
    turns = Turns(trainers)
    trainers.turn = turns.of_trainer
    return turns.share(calls)


class Turns:
    """The devices of a run. Whoever calls the trainer, or the engines, makes it their turn, and waits until it is."""

    def __init__(self, trainers: SharingTrainers) -> None:
        """Begins with the trainer's turn."""
        self._trainers = trainers
        self._turn: Literal["trainer", "weights", "engines"] = "trainer"
        self._lock = RLock()  # held while the trainer computes: a thread that replaces an engine waits
        self._engines: list[ActorHandle] = []

    @contextmanager
    def of_trainer(self) -> Iterator[None]:
        """Gives the trainer the devices inside the block."""
        with self._lock:
            self._go_to("trainer")
            yield

    def share(self, calls: EngineCalls[ActorHandle]) -> EngineCalls[ActorHandle]:
        """Returns the manager's functions, which wait for the engines' turn."""

        def start() -> ActorHandle:
            with self._lock:
                self._go_to("engines")
                engine = calls.start()
                self._engines.append(engine)
                return engine

        def stop(engine: ActorHandle) -> None:
            if engine in self._engines:
                self._engines.remove(engine)
            calls.stop(engine)

        def submit(engine: ActorHandle, requests: Sequence[tuple[int, Request]]) -> None:
            with self._lock:
                self._go_to("engines")
                calls.submit(engine, requests)

        def update(engines: Sequence[ActorHandle], version: int) -> Sequence[EngineDied | None]:
            with self._lock:
                if self._turn != "engines":
                    self._go_to("weights")
                    return calls.update(engines, version)
                self._trainers.keep(["weights"])  # beside engines that generate: one of them is new
                try:
                    return calls.update(engines, version)
                finally:
                    self._trainers.keep([])

        return replace(calls, start=start, stop=stop, submit=submit, update=update)

    def _go_to(self, turn: Literal["trainer", "weights", "engines"]) -> None:
        while self._turn != turn:
            self._advance()

    def _advance(self) -> None:
        """Goes to the next turn; who leaves the devices does so first."""
        match self._turn:
            case "trainer":
                self._trainers.keep(["weights"])
                self._on_engines(lambda engine: engine.wake_up.remote("weights"))
                self._turn = "weights"
            case "weights":
                self._trainers.keep([])
                self._on_engines(lambda engine: engine.wake_up.remote("kv_cache"))
                self._turn = "engines"
            case "engines":
                self._on_engines(lambda engine: engine.sleep.remote())
                self._trainers.keep(EVERYTHING)
                self._turn = "trainer"

    def _on_engines(self, call: Callable[[Any], ray.ObjectRef]) -> None:
        """Waits until all have done it; those that die are left to the manager, which replaces them.

        Raises:
            Exception: what an engine raised.
        """
        replies = {call(engine): engine for engine in self._engines}
        if not replies:
            return
        _, late = ray.wait(list(replies), num_returns=len(replies), timeout=START_SECONDS)
        for reply in late:
            ray.kill(replies[reply])
        for reply in replies:
            try:
                take_reply(reply)
            except EngineDied:
                continue
