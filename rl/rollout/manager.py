"""Spreads prompts over engines, collects all their responses, and restarts engines that die.

Imports neither Ray nor vLLM: it gets the functions that start, ask and await an engine.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from data_pipeline.failures import RankError
from rl.config import EngineConfig, SamplingConfig
from rl.types import Prompt, Responses

log = logging.getLogger(__name__)

E = TypeVar("E")  # an engine
H = TypeVar("H", bound=Hashable)  # a pending reply

OnReply = Callable[[Prompt, Responses], None]
"""Is told the responses to a prompt, or its fault."""

IN_FLIGHT = 2
"""Requests an engine holds, so that it never waits for the next."""

MAX_DEATHS = 3
"""Engines that may die in one round of prompts or one update; where there are more, each may once, as a node is lost
with all of its engines. More deaths have a cause."""


class EngineDied(RankError):
    """Raised by EngineCalls.take: the engine has died, and its pending requests are lost. The message says why."""


class NoRoom(RankError):
    """Raised by EngineCalls.start: no node has room for another engine. The message says what the nodes have."""


@dataclass(frozen=True, kw_only=True)
class EngineCalls(Generic[E, H]):
    """Functions that start, ask and stop engines of kind E. All but `update`, `wait` and `take` return at once."""

    start: Callable[[], E]
    """Returns a new engine with the weights of the model folder; raises NoRoom."""
    stop: Callable[[E], None]
    """Ends an engine, also one that is dead already."""
    ask: Callable[[E, Sequence[Prompt], SamplingConfig, int], H]
    """Engine.generate(prompts, sampling, step_seed)."""
    update: Callable[[Sequence[E], int], list[EngineDied | None]]
    """Gives these engines the weights of a version; returns for each None, or how it died. Waits for them."""
    wait: Callable[[Sequence[H]], H]
    """Waits until one of the replies has arrived or its engine has died, and returns it."""
    take: Callable[[H], Any]
    """Returns a reply's content; raises EngineDied, or what the engine raised."""


class RolloutManager(Generic[E, H]):
    """The engines of a run. One that dies is replaced, given the current weights, and asked again.

    Where its node was lost and no other has room, the run goes on with the engines that are left. One thread at a time
    calls its methods, but for close(), which ends what another waits for.
    """

    def __init__(self, calls: EngineCalls[E, H], config: EngineConfig) -> None:
        """Starts the engines; a request asks for no more responses than `config.max_num_seqs`."""
        self.restarts = 0
        self.lost = 0  # engines that could not be replaced
        self._calls = calls
        self._max_num_seqs = config.max_num_seqs
        self._max_deaths = max(MAX_DEATHS, config.num_engines)
        self._engines = {number: calls.start() for number in range(config.num_engines)}
        self._version: int | None = None
        self._is_closed = False

    @property
    def counts(self) -> dict[str, float]:
        """Metrics: engines that were replaced, and that could not be, since this process began."""
        return {"engine_restarts": self.restarts, "engines_lost": self.lost}

    def update_weights(self, version: int) -> None:
        """Gives every engine the weights of `version`; engines started later get them too.

        Raises:
            RuntimeError: engines keep dying.
            Exception: an engine refused the weights; whatever its Engine.update_weights raised.
        """
        self._version = version
        self._update(list(self._engines))

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        step_seed: int,
        on_reply: OnReply = lambda prompt, responses: None,
        *,
        replaces_dead: bool = True,
    ) -> list[Responses]:
        """Returns the responses to each prompt, in the order of the prompts, all of the current weights.

        Args:
            on_reply: is called once for each prompt, as soon as its responses are here, in the order in which they
                come. The engines go on, but get no further prompts before it returns.
            replaces_dead: give engines that die new ones at once; else the others answer for them, and they are
                replaced by the next call that may. A new one needs the trainer, to get the weights.

        Raises:
            RuntimeError: engines keep dying.
            EngineDied: all have died, and may not be replaced.
        """
        share = -(-len(prompts) // len(self._engines))
        size = max(1, min(share, self._max_num_seqs // sampling.n))
        queue = deque(range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size))
        asked: dict[H, tuple[int, range]] = {}  # reply -> number of the engine, which prompts
        found: dict[int, Responses] = {}
        deaths, dead_ones = 0, set[int]()
        while queue or asked:
            for number in self._next_engines(asked, len(queue), dead_ones):
                chunk = queue.popleft()
                reply = self._calls.ask(
                    self._engines[number], [prompts[i] for i in chunk], sampling, step_seed
                )
                asked[reply] = (number, chunk)
            reply = self._calls.wait(list(asked))
            try:
                replies = dict(zip(asked[reply][1], self._calls.take(reply), strict=True))
                del asked[reply]
            except EngineDied as error:
                deaths += 1
                dead, chunk = asked[reply]
                first, last = (prompts[i].ref.id for i in (chunk[0], chunk[-1]))
                self._check_deaths(deaths, f"was asked {first} to {last} ({error})")
                queue.extendleft(chunk for number, chunk in asked.values() if number == dead)
                asked = {r: (number, chunk) for r, (number, chunk) in asked.items() if number != dead}
                dead_ones.add(dead)
                if self._is_closed or not replaces_dead and dead_ones >= self._engines.keys():
                    raise
                if replaces_dead:
                    self._replace(dead)
                    dead_ones.clear()
            else:
                found |= replies
                for i, responses in replies.items():
                    on_reply(prompts[i], responses)
        return [found[i] for i in range(len(prompts))]

    def close(self) -> None:
        """Ends the engines; generate() in another thread then raises EngineDied."""
        self._is_closed = True
        for engine in self._engines.values():
            self._calls.stop(engine)
        self._engines.clear()

    def _next_engines(self, asked: dict[H, tuple[int, range]], num_chunks: int, dead: set[int]) -> list[int]:
        """Returns the engines for the next chunks: each time the one with the fewest, up to IN_FLIGHT each."""
        load = Counter(number for number, _ in asked.values())
        chosen: list[int] = []
        while len(chosen) < num_chunks:
            number = min(self._engines.keys() - dead, key=lambda n: (load[n], n))
            if load[number] >= IN_FLIGHT:
                break
            load[number] += 1
            chosen.append(number)
        return chosen

    def _replace(self, number: int) -> None:
        if self._restart(number) and self._version is not None:
            self._update([number])

    def _restart(self, number: int) -> bool:
        """Starts an engine in the place of another; returns false where no node has room for it."""
        self._calls.stop(self._engines.pop(number))  # it may still hold memory
        try:
            self._engines[number] = self._calls.start()
        except NoRoom as error:
            if not self._engines:
                raise
            self.lost += 1
            log.warning(f"the run goes on with {len(self._engines)} engines: {error}")
            return False
        self.restarts += 1
        return True

    def _update(self, numbers: Sequence[int]) -> None:
        """Gives these engines the current weights; those that die are replaced, and the new ones get them."""
        assert self._version is not None
        deaths = 0
        while numbers:
            outcomes = self._calls.update([self._engines[number] for number in numbers], self._version)
            died = {number: out for number, out in zip(numbers, outcomes, strict=True) if out is not None}
            deaths += len(died)
            for error in died.values():
                self._check_deaths(deaths, f"was given weights ({error})")
            numbers = [number for number in died if self._restart(number)]

    def _check_deaths(self, deaths: int, last: str) -> None:
        if deaths > self._max_deaths:
            raise RankError(
                f"{deaths} engines died one after another, allowed {self._max_deaths}; the last {last}. If memory "
                "ran out, lower engine.max_num_seqs, engine.gpu_memory_utilization or engine.cpu_kv_cache_gib"
            )
