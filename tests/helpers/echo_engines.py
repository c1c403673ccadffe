"""Engines in this process that respond with what they were asked, in any order, and die when told."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from rl.config import SamplingConfig
from rl.rollout.manager import EngineCalls, EngineDied, NoRoom
from rl.types import Prompt, Responses, Rollout


class EchoEngine:
    """Responds with the prompt's number, the step's seed and its own version, in this process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.version = 0
        self.alive = True
        self.open_requests = 0

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


class Reply:
    def __init__(self, engine: EchoEngine, say: Callable[[], object], size: int = 0) -> None:
        self.engine, self.say, self.size = engine, say, size
        engine.open_requests += 1


class EchoEngines:
    """Starts EchoEngines, returns their replies in any order, and lets engines die."""

    def __init__(
        self,
        seed: int = 0,
        *,
        deaths: Sequence[int] = (),
        deaths_in_updates: Sequence[int] = (),
        kind: type[EchoEngine] = EchoEngine,
    ) -> None:
        """Takes the numbers of the waits and of the updates, counted over all engines, in which an engine dies."""
        self._updates, self._deaths_in_updates = 0, set(deaths_in_updates)
        self.started: list[EchoEngine] = []
        self.room = 99
        self._kind = kind
        self.asked: list[Reply] = []
        self._random, self._deaths, self._waits = random.Random(seed), set(deaths), 0

    def calls(self) -> EngineCalls[EchoEngine, Reply]:
        return EngineCalls(
            start=self._start,
            stop=self._stop,
            ask=self._ask,
            update=self._update,
            wait=self._wait,
            take=self._take,
        )

    def _start(self) -> EchoEngine:
        if len(self.started) == self.room:
            raise NoRoom("no node has room")
        self.started.append(self._kind(len(self.started)))
        return self.started[-1]

    def _stop(self, engine: EchoEngine) -> None:
        engine.alive = False

    def _ask(
        self, engine: EchoEngine, prompts: Sequence[Prompt], sampling: SamplingConfig, seed: int
    ) -> Reply:
        assert engine.alive
        self.asked.append(Reply(engine, lambda: engine.answer(prompts, sampling, seed), len(prompts)))
        return self.asked[-1]

    def _update(self, engines: Sequence[EchoEngine], version: int) -> list[EngineDied | None]:
        for engine in engines:
            self._updates += 1
            engine.version = version
            engine.alive = engine.alive and self._updates not in self._deaths_in_updates
        return [None if engine.alive else EngineDied(f"engine {engine.number}") for engine in engines]

    def _wait(self, replies: Sequence[Reply]) -> Reply:
        self._waits += 1
        reply = self._random.choice(replies)
        if self._waits in self._deaths:
            reply.engine.alive = False
        return reply

    def _take(self, reply: Reply) -> object:
        reply.engine.open_requests -= 1
        if not reply.engine.alive:
            raise EngineDied(f"engine {reply.engine.number}")
        return reply.say()
