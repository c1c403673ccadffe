"""The engines that a manager has: what each has in hand, and which has the fewest responses to do.

All operations on one engine take constant or logarithmic time in the number of engines.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Generic, Literal

from rl.rollout.calls import E, EngineState, Report, Request
from rl.types import Responses

LOOK_AHEAD = 8
"""An engine is asked for 1/8 more responses than it has slots, or one prompt more: it never waits for the next."""
RATE_SECONDS = 2.0
"""Over which tokens per second are counted."""
LOOK_SECONDS = 10.0
"""The most that counts of the time between two looks for engines that hang: a driver that was stopped saw nothing."""


@dataclass(eq=False, slots=True)
class Job:
    """A request until it is answered."""

    number: int
    request: Request
    future: Future[Responses] = field(default_factory=Future)
    deaths: int = 0  # engines that died with it

    def settle(self, result: Responses | BaseException) -> None:
        """Sets the result, unless the future was cancelled or has one."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if isinstance(result, BaseException):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


@dataclass(eq=False, slots=True)
class Member(Generic[E]):
    """An engine and what it has in hand."""

    number: int
    engine: E
    address: str
    moved_at: float  # when it last did something
    weights: int | None = None  # the version that it was given last
    jobs: dict[int, Job] = field(default_factory=dict)
    is_updating: bool = False
    sent: int = 0  # responses that it was asked for
    report: Report | None = None
    rate: float = 0.0  # tokens per second
    rated: tuple[float, int] = (0.0, 0)  # when, and the tokens until then
    idle: float = 0.0  # seconds without a prompt, up to `idle_from`
    idle_from: float = field(init=False)

    def __post_init__(self) -> None:
        self.idle_from = self.moved_at

    @property
    def has_started(self) -> bool:
        return self.report is not None or self.weights is not None

    @property
    def load(self) -> int:
        """Responses that it has not finished, as far as known."""
        report = self.report
        return self.sent if report is None else report.running + report.waiting + self.sent - report.taken

    def give(self, job: Job, now: float) -> None:
        if not self.jobs:
            self.idle += now - self.idle_from
            self.moved_at = now
        self.jobs[job.number] = job
        self.sent += job.request.sampling.n

    def take(self, report: Report, now: float) -> list[tuple[Job, Responses | Exception]]:
        """Returns the jobs that the engine finished, with their results."""
        last, self.report = self.report, replace(report, finished=())  # responses must not stay in memory
        if last is None or report.tokens != last.tokens or report.taken != last.taken or report.finished:
            self.moved_at = now
        if now - self.rated[0] >= RATE_SECONDS:
            self.rate = (report.tokens - self.rated[1]) / (now - self.rated[0]) if last else 0.0
            self.rated = (now, report.tokens)
        found = [(self.jobs.pop(number, None), result) for number, result in report.finished]
        if found and not self.jobs:
            self.idle_from = now
        return [(job, result) for job, result in found if job is not None]

    def take_idle(self, now: float) -> float:
        """Returns the seconds without a prompt since the last call."""
        idle, self.idle = self.idle + (0.0 if self.jobs else now - self.idle_from), 0.0
        self.idle_from = now
        return idle

    def forgive(self, seconds: float, now: float) -> None:
        """Leaves out seconds, if above 0, of the time in which it did nothing."""
        self.moved_at = min(now, self.moved_at + max(0.0, seconds))

    def is_hanging(self, now: float, limit: float) -> bool:
        is_busy = bool(self.jobs) or not self.has_started
        return is_busy and not self.is_updating and now - self.moved_at > limit

    def describe(self) -> EngineState:
        report = self.report
        return EngineState(
            number=self.number,
            address=self.address,
            state=self._state(),
            version=self.weights,
            prompts=len(self.jobs),
            running=report.running if report else 0,
            tokens=report.tokens if report else 0,
            tokens_per_second=self.rate if self.jobs else 0.0,
        )

    def _state(self) -> Literal["starting", "idle", "generating", "updating"]:
        if not self.has_started:
            return "starting"
        if self.is_updating:
            return "updating"
        return "generating" if self.jobs else "idle"


class Members(Generic[E]):
    """The engines by number, and a heap of those that have the current weights and room, by their load."""

    def __init__(self, max_num_seqs: int) -> None:
        self._limit = max_num_seqs + max(1, max_num_seqs // LOOK_AHEAD)
        self._by_number: dict[int, Member[E]] = {}
        self._by_engine: dict[E, Member[E]] = {}
        self._absent: dict[int, EngineState] = {}  # of numbers without an engine, what the last one did
        self._version: int | None = None
        self.outdated: dict[int, Member[E]] = {}  # those without the current weights
        self._heap: list[tuple[int, int]] = []  # load and number, void where the load is another by now

    def __iter__(self) -> Iterator[Member[E]]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)

    def list_absent(self, state: Literal["starting", "lost"]) -> list[int]:
        """Returns the numbers for which an engine is being started, or for which there was no room."""
        return [number for number, last in self._absent.items() if last.state == state]

    def is_absent(self, number: int) -> bool:
        """Returns whether an engine of this number was removed, and none came in its place."""
        return number in self._absent

    def find(self, engine: E) -> Member[E] | None:
        return self._by_engine.get(engine)

    def add(self, member: Member[E]) -> None:
        self._by_number[member.number] = self._by_engine[member.engine] = member
        self._absent.pop(member.number, None)
        if member.weights != self._version:
            self.outdated[member.number] = member
        self.offer(member)

    def remove(self, member: Member[E]) -> None:
        """Forgets an engine in whose place another one is started."""
        del self._by_number[member.number], self._by_engine[member.engine]
        self.outdated.pop(member.number, None)
        self._absent[member.number] = replace(
            member.describe(), state="starting", prompts=0, running=0, tokens_per_second=0.0
        )

    def lose(self, number: int) -> bool:
        """Notes that there was no room for one in the place of one that was removed; returns whether this is news."""
        last = self._absent[number]
        self._absent[number] = replace(last, state="lost")
        return last.state != "lost"

    def clear(self) -> None:
        self._by_number.clear()
        self._by_engine.clear()
        self.outdated.clear()
        self._heap.clear()

    def set_version(self, version: int) -> None:
        """Sets the version of the current weights, which no engine has yet."""
        self._version, self.outdated = version, dict(self._by_number)
        self._heap.clear()

    def end_update(self, member: Member[E], version: int | None, now: float) -> None:
        """Notes that an engine was given the weights of a version."""
        member.is_updating, member.weights, member.moved_at = False, version, now
        if version == self._version:
            self.outdated.pop(member.number, None)
        self.offer(member)

    def offer(self, member: Member[E]) -> None:
        """Makes an engine whose load or weights have changed known to find_idlest."""
        if self._has_room(member):
            heapq.heappush(self._heap, (member.load, member.number))
        if len(self._heap) > 64 + 4 * len(self):
            self._heap = [(member.load, member.number) for member in self if self._has_room(member)]
            heapq.heapify(self._heap)

    def find_idlest(self) -> Member[E] | None:
        """Returns the engine with room and the fewest responses to do, of equals the first; None where none has."""
        while self._heap:
            load, number = self._heap[0]
            member = self._by_number.get(number)
            if member is not None and member.load == load and self._has_room(member):
                return member
            heapq.heappop(self._heap)
        return None

    def find_hanging(
        self, now: float, passed: float, timeout: float, start_timeout: float
    ) -> list[tuple[Member[E], str]]:
        """Returns engines that have made no token for too long, and what to say of it.

        Args:
            passed: seconds since the last look.
        """
        found = []
        for member in self:
            member.forgive(passed - LOOK_SECONDS, now)
            limit = timeout if member.has_started else start_timeout
            if member.is_hanging(now, limit):
                option = "token_timeout" if member.has_started else "start_timeout"
                found.append((member, f"it made no token for {limit:g} s (engine.{option})"))
        return found

    def describe(self) -> list[EngineState]:
        states = {member.number: member.describe() for member in self} | self._absent
        return [states[number] for number in sorted(states)]

    def _has_room(self, member: Member[E]) -> bool:
        return member.load < self._limit and member.weights == self._version
