"""Engines in this process that respond with what they were asked, in any order, and die when told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Condition

import numpy as np

from rl.config import SamplingConfig
from rl.rollout.calls import EngineCalls, EngineDied, NoRoom, Report, Request
from rl.types import Prompt, Responses, Rollout


@dataclass(eq=False)
class EchoEngine:
    """Responds with the prompt's number, the step's seed and its own version, in this process."""

    number: int
    version: int = 0
    alive: bool = True
    said_dead: bool = False
    open: list[tuple[int, Request]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)  # numbers of all requests
    taken: int = 0  # responses
    finished: int = 0

    def answer(self, prompts: Sequence[Prompt], sampling: SamplingConfig, step_seed: int) -> list[Responses]:
        return [
            Responses(
                rollouts=tuple(
                    Rollout(
                        token_ids=np.array([prompt.ref.offset, step_seed, i], np.int32),
                        logprobs=np.zeros(3, np.float32),
                        response="",
                        finish_reason="stop",
                        versions=((self.version, 3),),
                    )
                    for i in range(sampling.n)
                )
            )
            for prompt in prompts
        ]

    def report(self, finished: Sequence[tuple[int, Responses | Exception]] = ()) -> Report:
        to_do = sum(request.sampling.n for _, request in self.open)
        return Report(
            finished=finished,
            taken=self.taken,
            running=to_do,
            waiting=0,
            tokens=3 * self.finished,
            version=self.version,
        )


class EchoEngines:
    """Starts EchoEngines, returns their replies one by one in any order, and lets engines die."""

    def __init__(
        self,
        seed: int = 0,
        *,
        deaths: Sequence[int] = (),
        deaths_in_updates: Sequence[int] = (),
        kind: type[EchoEngine] = EchoEngine,
    ) -> None:
        """Takes the numbers of the replies and of the updates, counted over all engines, in which an engine dies."""
        self._updates, self._deaths_in_updates = 0, set(deaths_in_updates)
        self.started: list[EchoEngine] = []
        self.room = 99
        self._kind = kind
        self._random, self._deaths, self._replies = random.Random(seed), set(deaths), 0
        self._changed = Condition()

    def calls(self) -> EngineCalls[EchoEngine]:
        return EngineCalls(
            start=self._start, stop=self._stop, submit=self._submit, poll=self._poll, update=self._update
        )

    def kill(self, engine: EchoEngine) -> None:
        with self._changed:
            engine.alive = False
            self._changed.notify_all()

    def _start(self) -> EchoEngine:
        if len(self.started) == self.room:
            raise NoRoom("no node has room")
        self.started.append(self._kind(len(self.started)))
        return self.started[-1]

    def _stop(self, engine: EchoEngine) -> None:
        engine.said_dead = True
        self.kill(engine)

    def _submit(self, engine: EchoEngine, requests: Sequence[tuple[int, Request]]) -> None:
        with self._changed:
            engine.open.extend(requests)
            engine.asked.extend(number for number, _ in requests)
            engine.taken += sum(request.sampling.n for _, request in requests)
            self._changed.notify_all()

    def _update(self, engines: Sequence[EchoEngine], version: int) -> list[EngineDied | None]:
        for engine in engines:
            self._updates += 1
            engine.version = version
            engine.alive = engine.alive and self._updates not in self._deaths_in_updates
        return [None if engine.alive else EngineDied(f"engine {engine.number}") for engine in engines]

    def _poll(self, seconds: float) -> list[tuple[EchoEngine, Report | Exception]]:
        with self._changed:
            self._changed.wait_for(lambda: self._dead() or self._busy(), seconds)
            if busy := self._busy():
                self._replies += 1
                engine = self._random.choice(busy)
                engine.alive = self._replies not in self._deaths
            for engine in self._dead():
                engine.said_dead = True
                return [(engine, EngineDied(f"engine {engine.number}"))]
            return [(engine, self._reply(engine))] if busy else []

    def _reply(self, engine: EchoEngine) -> Report:
        number, asked = engine.open.pop(self._random.randrange(len(engine.open)))
        engine.finished += asked.sampling.n
        (responses,) = engine.answer([asked.prompt], asked.sampling, asked.seed)
        return engine.report([(number, responses)])

    def _dead(self) -> list[EchoEngine]:
        return [engine for engine in self.started if not engine.alive and not engine.said_dead]

    def _busy(self) -> list[EchoEngine]:
        return [engine for engine in self.started if engine.alive and engine.open]
