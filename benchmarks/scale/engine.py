"""A model of an engine with continuous batching that needs no event for a token.

All running responses get one token in each decoding step, so that a response that joins when `done` tokens have been
given out ends when `done + length` have: a heap of these ends is the whole state. Between two ends, x steps take
`x * (alone + context * C) + context * R * x**2 / 2` seconds, for R running responses with C tokens of context together:
each step is slower than the one before by the R tokens that it added. Solved for x it moves the engine to any time.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.scale.speed import PROMPT_TOKENS, Speed

Spans = tuple[tuple[int, int], ...]
"""Versions of the weights, each with the tokens sampled from them."""


@dataclass(slots=True)
class Work:
    """A prompt at an engine."""

    lengths: Sequence[int]  # of its responses
    spans: list[Spans] = field(default_factory=list)  # of those that have ended, in the order of ending
    ended: list[int] = field(default_factory=list)  # their numbers


@dataclass(slots=True)
class Used:
    """What an engine did, in seconds and tokens."""

    decoding: float = 0.0
    prefilling: float = 0.0  # prompts, and responses again after an update
    paused: float = 0.0  # while weights come
    slots: float = 0.0  # running responses times seconds
    tokens: float = 0.0


class FakeEngine:
    """An engine whose `slots` run the responses of its prompts in the order of asking; times are seconds."""

    def __init__(self, speed: Speed, slots: int, now: float = 0.0, version: int = 0) -> None:
        self.now, self.used = now, Used()
        self._speed, self._slots = speed, slots
        self._done = 0.0  # tokens that a response had got which ran all the time
        self._context = 0.0  # tokens of all running responses, with their prompts
        self._free = now  # until then prompts are computed, and nothing is decoded
        self._paused = now  # until then weights come
        self._running: list[
            tuple[float, int, float, Work, int]
        ] = []  # end, tie, start, work, number of the response
        self._waiting = deque[tuple[Work, int]]()
        self._ties = 0
        self._versions, self._changes = [version], [0.0]  # versions, and `done` from which each wrote

    @property
    def version(self) -> int:
        return self._versions[-1]

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, work: Work) -> None:
        """Puts the responses of a prompt behind those that wait."""
        self._waiting.extend((work, number) for number in range(len(work.lengths)))
        self._fill()

    def next_end(self) -> float:
        """Returns when the next response ends if none is added before; infinity where none runs."""
        if not self._running:
            return math.inf
        steps = self._running[0][0] - self._done
        return max(self.now, self._free) + self._seconds(steps)

    def advance(self, time: float) -> list[Work]:
        """Moves on to `time`, at the earliest `now`; returns the prompts of which the last response ended, in order."""
        finished: list[Work] = []
        while self._running and (end := self.next_end()) <= time:
            self._move(end, self._running[0][0])
            while self._running and self._running[0][0] <= self._done:
                work = self._end()
                if len(work.ended) == len(work.lengths):
                    finished.append(work)
            self._fill()
        self._move(time, None)
        return finished

    def update(self, version: int, pause: float = 0.0) -> None:
        """Takes new weights in `pause` seconds, then computes all running responses again before they go on."""
        self._versions.append(version)
        self._changes.append(self._done)
        self._paused = self.now + pause
        self._free = max(self._free, self._paused)
        self._stall(self._context * self._speed.prefill)

    def drop(self) -> None:
        """Loses all that is not finished, as when the engine dies."""
        self._running.clear()
        self._waiting.clear()
        self._context = 0.0

    def _seconds(self, steps: float) -> float:
        speed = self._speed
        return (
            steps * (speed.alone + speed.context * self._context)
            + speed.context * self.running * steps**2 / 2
        )

    def _move(self, time: float, done: float | None) -> None:
        """Moves to `time`, at which `done` tokens are given out; None: as many as there is time for."""
        start = min(max(self.now, self._free), time)
        seconds, running = time - start, self.running
        paused = max(0.0, min(start, self._paused) - self.now)
        self.used.paused += paused
        self.used.prefilling += start - self.now - paused
        self.used.slots += running * (time - self.now)
        self.now = time
        if not running:
            return
        if done is None:
            slope = self._speed.alone + self._speed.context * self._context
            bend = self._speed.context * running
            done = self._done + 2 * seconds / (slope + math.sqrt(slope**2 + 2 * bend * seconds))
        steps = done - self._done
        self._done = done
        self._context += running * steps
        self.used.decoding += seconds
        self.used.tokens += running * steps

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            work, number = self._waiting.popleft()
            if number == 0:  # the others share what was computed of the prompt
                self._stall(PROMPT_TOKENS * self._speed.prefill)
            self._ties += 1
            end = self._done + work.lengths[number]
            heapq.heappush(self._running, (end, self._ties, self._done, work, number))
            self._context += PROMPT_TOKENS

    def _stall(self, seconds: float) -> None:
        self._free = max(self._free, self.now) + seconds

    def _end(self) -> Work:
        end, _, start, work, number = heapq.heappop(self._running)
        self._context -= PROMPT_TOKENS + end - start
        work.spans.append(self._spans(start, end))
        work.ended.append(number)
        if not self._running:
            self._context = 0.0  # without what rounding has left
        return work

    def _spans(self, start: float, end: float) -> Spans:
        """Returns which versions wrote the tokens from `start` to `end`; in whole tokens that add up."""
        first = bisect_right(self._changes, start) - 1
        found, since = list[tuple[int, int]](), start
        for at in range(first, len(self._changes)):
            until = self._changes[at + 1] if at + 1 < len(self._changes) else end
            until = min(max(until, since), end)
            tokens = round(until - start) - round(since - start)
            if tokens:
                found.append((self._versions[at], tokens))
            since = until
            if until >= end:
                break
        return tuple(found)
