"""Many modelled engines under one virtual clock, behind the functions that the rollout manager gets for real ones.

`poll` moves the clock to the next report, and no further than it may wait: whoever pumps the manager makes time pass.
Engines report as EngineServer.collect does: when a prompt is finished, when 1/16 of the slots is free that no response
waits for, and otherwise after some seconds.
"""

from __future__ import annotations

import heapq
import math
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scale.engine import FakeEngine, Work
from benchmarks.scale.speed import LONGEST, Lengths, Speed, published_speed
from data_pipeline.types import SampleRef
from rl.rollout.calls import EngineCalls, EngineDied, Report, Request
from rl.types import Prompt, Responses, Rollout

TOKENS, LOGPROBS = np.zeros(LONGEST, np.int32), np.zeros(LONGEST, np.float32)
"""Responses are views of these: their own 8 bytes a token are not what is measured."""
GROUP = 16
"""Responses of a prompt, as in the recipe."""
ROOM_SHARE = 16  # of EngineServer, which this module does not import: it imports vLLM's engine
TOGETHER = 0.02
"""Seconds after a report in which others come with it."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What is modelled."""

    slots: int = 256
    """engine.max_num_seqs"""
    speed: Speed = field(default_factory=published_speed)
    lengths: Lengths = field(default_factory=Lengths)
    report_seconds: float = 10.0
    """After which an engine reports although nothing has happened."""
    update_seconds: float = 15.2
    """In which weights are sent, at 1 GB/s as `omr plan` assumes, and engines generate nothing."""
    start_seconds: float = 60.0
    """Until a new engine has loaded its model."""
    deaths_per_hour: float = 0.0
    """Share of the engines that die in an hour."""
    has_tokens: bool = True
    """False: responses without rollouts, to measure what the manager costs without them."""
    seed: int = 0


@dataclass(eq=False, slots=True)
class Host:
    """An engine with what it has not reported yet."""

    engine: FakeEngine
    starts_at: float
    works: dict[int, tuple[int, Work]] = field(default_factory=dict)  # by identity: number of the request
    finished: list[tuple[int, Responses | Exception]] = field(default_factory=list)
    taken: int = 0
    reported: int = 0  # responses that were to do at the last report
    is_ready: bool = False  # to report
    is_alive: bool = True
    end_at: float = math.inf  # the next end of a response
    report_at: float = math.inf


class Cluster:
    """The engines, the clock, and the seconds of this process that the model itself took."""

    def __init__(self, config: ClusterConfig) -> None:
        self.now = self.cpu = 0.0
        self.bytes = 0  # that the model itself holds, where tracemalloc counts
        self.num_polls = self.num_reports = self.num_submits = 0
        self.died = 0
        self.before_poll: Callable[[], object] = lambda: None
        """Is called whenever the manager waits for reports."""
        self.hosts: list[Host] = []  # that were ever started
        self._config, self._random = config, random.Random(config.seed)
        self._events: list[tuple[float, int, Host, Callable[[Host], None]]] = []
        self._ready: list[Host] = []
        self._ties = 0

    def calls(self) -> EngineCalls[Host]:
        return EngineCalls(
            start=self._start,
            stop=self._stop,
            submit=self._submit,
            poll=self._poll,
            update=self._update,
            has_started=lambda host: host.is_alive and host.starts_at <= self.now,
            clock=lambda: self.now,
        )

    def used(self, name: str) -> float:
        """Returns the sum of an attribute of Used over all engines until now."""
        with self._modelling():
            for host in self.hosts:
                self._advance(host)
            return sum(getattr(host.engine.used, name) for host in self.hosts)

    def _start(self) -> Host:
        starts_at = self.now + (self._config.start_seconds if self.now else 0.0)
        host = Host(FakeEngine(self._config.speed, self._config.slots, self.now), starts_at)
        self.hosts.append(host)
        self._plan_report(host, starts_at)
        if rate := self._config.deaths_per_hour / 3600:
            self._at(self.now + self._random.expovariate(rate), host, self._die)
        return host

    def _stop(self, host: Host) -> None:
        host.is_alive = False

    def _submit(self, host: Host, requests: Sequence[tuple[int, Request]]) -> None:
        with self._modelling():
            self.num_submits += 1
            if not host.is_alive:
                return
            self._advance(host)
            for number, request in requests:
                work = Work(self._config.lengths.draw(request.prompt.ref.offset, request.sampling.n).tolist())
                host.works[id(work)] = (number, work)
                host.taken += len(work.lengths)
                host.engine.add(work)
            self._plan_end(host)

    def _poll(self, seconds: float) -> list[tuple[Host, Report | Exception]]:
        self.before_poll()
        with self._modelling():
            self._run(self.now + seconds, lambda: bool(self._ready))
            if self._ready:
                self._run(self.now + TOGETHER, lambda: False)
            ready, self._ready = self._ready, []
            self.num_polls += bool(ready)
            self.num_reports += len(ready)
            return [(host, self._report(host)) for host in ready]

    def _update(self, hosts: Sequence[Host], version: int) -> list[EngineDied | None]:
        with self._modelling():
            for host in hosts:
                self._advance(host)
                host.engine.update(version, pause=self._config.update_seconds)
                self._plan_end(host)
            self._run(self.now + self._config.update_seconds, lambda: False)
            return [None if host.is_alive else EngineDied("modelled") for host in hosts]

    def _run(self, until: float, is_done: Callable[[], bool]) -> None:
        """Moves the clock to `until`, or until something has happened."""
        while not is_done():
            if not self._events or self._events[0][0] > until:
                self.now = until
                return
            self.now, _, host, happen = heapq.heappop(self._events)
            happen(host)

    def _at(self, time: float, host: Host, happen: Callable[[Host], None]) -> None:
        self._ties += 1
        heapq.heappush(self._events, (time, self._ties, host, happen))

    def _plan_end(self, host: Host) -> None:
        end = host.engine.next_end()
        if end != host.end_at:
            host.end_at = end
            if end < math.inf:
                self._at(end, host, self._end)

    def _plan_report(self, host: Host, time: float) -> None:
        host.report_at = time
        self._at(time, host, self._time_out)

    def _end(self, host: Host) -> None:
        if not host.is_alive or host.end_at != self.now:
            return  # other responses have joined it since
        self._advance(host)
        self._plan_end(host)
        free = host.reported - host.engine.running
        if host.finished or not host.engine.waiting and free >= max(1, self._config.slots // ROOM_SHARE):
            self._make_ready(host)

    def _time_out(self, host: Host) -> None:
        if host.is_alive and host.report_at == self.now:
            self._make_ready(host)

    def _die(self, host: Host) -> None:
        if host.is_alive:
            host.is_alive = False
            self.died += 1
            self._advance(host)
            host.engine.drop()
            self._make_ready(host)

    def _make_ready(self, host: Host) -> None:
        if not host.is_ready:
            host.is_ready = True
            self._ready.append(host)

    def _report(self, host: Host) -> Report | Exception:
        host.is_ready = False
        if not host.is_alive:
            return EngineDied("modelled")
        self._advance(host)
        self._plan_report(host, self.now + self._config.report_seconds)
        finished, host.finished = host.finished, []
        engine = host.engine
        host.reported = engine.running + engine.waiting
        return Report(
            finished=finished,
            taken=host.taken,
            running=engine.running,
            waiting=engine.waiting,
            tokens=int(engine.used.tokens),
            version=engine.version,
        )

    def _advance(self, host: Host) -> None:
        for work in host.engine.advance(self.now):
            number, _ = host.works.pop(id(work))
            host.finished.append((number, respond(work) if self._config.has_tokens else Responses()))

    @contextmanager
    def _modelling(self) -> Iterator[None]:
        start, held = time.thread_time(), tracemalloc.get_traced_memory()[0]
        try:
            yield
        finally:
            self.cpu += time.thread_time() - start
            self.bytes += tracemalloc.get_traced_memory()[0] - held


def respond(work: Work) -> Responses:
    """Returns the responses to a prompt that an engine has finished."""
    rollouts = [
        Rollout(
            token_ids=TOKENS[: work.lengths[number]],
            logprobs=LOGPROBS[: work.lengths[number]],
            versions=spans,
            response="",
            finish_reason="length" if work.lengths[number] == LONGEST else "stop",
        )
        for number, spans in sorted(zip(work.ended, work.spans, strict=True))
    ]
    return Responses(rollouts=tuple(rollouts))


def make_prompts(count: int, first: int = 0) -> list[Prompt]:
    """Returns prompts whose responses have lengths by their number."""
    return [
        Prompt(ref=SampleRef(id=str(number), shard="shard-000000-0000.tar", offset=number, size=1), answer="")
        for number in range(first, first + count)
    ]
