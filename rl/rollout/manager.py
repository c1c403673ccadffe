"""Keeps engines busy: gives each the next prompt as soon as it has room, and replaces engines that die or hang.

Imports neither Ray nor vLLM: it gets the functions that start, ask and await an engine.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from queue import Empty, SimpleQueue
from threading import RLock, Thread, current_thread
from typing import Any, Generic, TypeVar

from rl.config import EngineConfig, SamplingConfig
from rl.rollout.calls import E, EngineCalls, EngineDied, EngineState, NoRoom, Report, Request, Resent
from rl.rollout.deaths import Deaths
from rl.rollout.members import Job, Member, Members
from rl.rollout.starter import Starter
from rl.types import Prompt, Responses

log = logging.getLogger(__name__)

R = TypeVar("R")

OnReply = Callable[[Prompt, Responses], object]
"""Is told the responses to a prompt, or its fault."""

WAIT_SECONDS = 1.0
"""Between two looks at the trainer, at engines that hang, and at new ones that have started."""


class RolloutManager(Generic[E]):
    """The engines of a run, and the queue of prompts before them.

    An engine that dies is replaced at once, and its prompts are the next that are asked. The new one is given the
    current weights when the caller waits (generate, wait), as the trainer is then idle, or by the next update. Where
    a node was lost and no other has room, the run goes on with the engines that are left, and each update tries again.

    Any thread may submit; one at a time generates, waits or updates. close() ends what others wait for.
    """

    def __init__(self, calls: EngineCalls[E], config: EngineConfig, *, threaded: bool = True) -> None:
        """Starts the engines, and a thread that pumps.

        Args:
            threaded: false leaves pump_once() to the caller, and to those who wait.
        """
        self._calls, self._timeout, self._start_timeout = calls, config.token_timeout, config.start_timeout
        self._deaths = Deaths(config.num_engines)
        self._members: Members[E] = Members(config.max_num_seqs)
        self._lock = RLock()
        self._queue: deque[Job] = deque()
        self._version: int | None = None
        self._num_jobs = self._num_died = 0
        self._looked_at = calls.clock()
        self._failure: BaseException | None = None
        self._is_closed = False
        self._starter = Starter(calls.start, self._take_started, threaded=threaded)
        for number in range(config.num_engines):
            self._add(number, calls.start())
        self._thread = Thread(target=self._run, name="rollout", daemon=True) if threaded else None
        if self._thread:
            self._thread.start()

    @property
    def counts(self) -> dict[str, float]:
        """Metrics: engines that were replaced since this process began, and those that are not, for lack of room."""
        return {"engine_restarts": self.restarts, "engines_lost": self.lost}

    @property
    def restarts(self) -> int:
        """Engines that died, and in whose place another one was started, or is in a moment."""
        with self._lock:
            return self._num_died - self.lost

    @property
    def lost(self) -> int:
        """Engines that died, and for which no node has room."""
        with self._lock:
            return len(self._members.list_absent("lost"))

    def take_idle(self) -> float:
        """Returns the seconds since the last call in which an engine had no prompt: their mean over the engines."""
        with self._lock:
            now = self._calls.clock()
            idle = [member.take_idle(now) for member in self._members]
            return sum(idle) / max(1, len(idle))

    def states(self) -> list[EngineState]:
        """Returns what is known of each engine, by number; lost ones are those that could not be replaced."""
        with self._lock:
            return self._members.describe()

    def submit(self, requests: Sequence[Request], *, ahead: bool = False) -> list[Future[Responses]]:
        """Queues requests; returns the responses to come. A future that is cancelled gives up its place.

        A prompt that cannot be asked has a fault. A future raises what the engine raised for its request, or why the
        engines can work no more.

        Args:
            ahead: these go before all that wait.
        """
        with self._lock:
            self._check()
            jobs = [Job(self._num_jobs + number, request) for number, request in enumerate(requests)]
            self._num_jobs += len(jobs)
            if ahead:
                self._queue.extendleft(reversed(jobs))
            else:
                self._queue.extend(jobs)
            self._dispatch()
        return [job.future for job in jobs]

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        step_seed: int,
        on_reply: OnReply = lambda prompt, responses: None,
        *,
        replaces_dead: bool = True,
    ) -> list[Responses]:
        """Returns the responses to each prompt, in the order of the prompts. They go before what was submitted.

        Args:
            on_reply: is called once for each prompt, as soon as its responses are here, in the order in which they
                come. The engines go on meanwhile.
            replaces_dead: give engines in the place of dead ones the weights, for which the trainer must have those of
                the last update; else the others answer, and the new ones get weights by a later call.

        Raises:
            RankError: engines keep dying.
            EngineDied: the manager was closed; or all have died, and `replaces_dead` is false.
        """
        found, requests = {}, [Request(prompt=p, sampling=sampling, seed=step_seed) for p in prompts]
        with closing(self.answer(requests, replaces_dead=replaces_dead)) as replies:
            for number, responses in replies:
                found[number] = responses
                on_reply(prompts[number], responses)
        return [found[number] for number in range(len(prompts))]

    def answer(
        self, requests: Sequence[Request], *, replaces_dead: bool = True
    ) -> Generator[tuple[int, Responses], None, None]:
        """Yields the numbers of requests and their responses as they finish; else as generate()."""
        numbers = {future: number for number, future in enumerate(self.submit(requests, ahead=True))}
        try:
            for future in self._await(list(numbers), replaces_dead):
                yield numbers[future], future.result()
        finally:
            for future in numbers:
                future.cancel()  # does nothing to those that are done

    def wait(self, futures: Iterable[Future[Any]], *, replaces_dead: bool = True) -> None:
        """Waits until all of these are done, also with an error. They may be anybody's, not the manager's alone.

        Args and Raises: as generate(); RankError also where the trainer has died.
        """
        for _ in self._await(list(futures), replaces_dead):
            pass

    def update_weights(self, version: int) -> None:
        """Gives every engine the weights of `version`, also while they generate.

        The first time it waits for all engines to start. Later those that are still starting get the weights when
        somebody waits, or by the next update.

        Raises:
            RuntimeError: engines keep dying.
            Exception: an engine refused the weights; whatever its Engine.update_weights raised.
        """
        with self._lock:
            self._check()
            is_first, self._version = self._version is None, version
            self._members.set_version(version)
            lost = self._members.list_absent("lost")
        for number in lost:
            self._starter.start(number)  # there may be room by now
        self._update(wait=is_first)
        self._starter.wait(WAIT_SECONDS)  # a place that is free, or none, is found at once: metrics tell it

    def resend_weights(self) -> dict[int, Resent]:
        """Sends the engines the weights of the last update once more; returns what each had before and has now."""
        with self._lock:
            self._check()
            members = [member for member in self._members if member.weights == self._version]
        assert self._version is not None, "update them first"
        found = self._calls.resend([member.engine for member in members], self._version)
        return {member.number: resent for member, resent in zip(members, found, strict=True)}

    def pump_once(self, timeout: float = WAIT_SECONDS) -> None:
        """Takes what engines report, gives them the next prompts, and replaces those that died or hang.

        Waits at most `timeout` seconds for a report. Raises what went wrong, as all futures do from then on.
        """
        settled: list[tuple[Job, Responses | Exception]] = []
        try:
            news = self._calls.poll(timeout)
            with self._lock:
                for engine, report in news:
                    self._take(engine, report, settled)
                self._look_for_hangs()
                self._dispatch()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for job, result in settled:
                job.settle(result)

    def close(self) -> None:
        """Ends the engines; whoever waits, in another thread, gets EngineDied."""
        self._is_closed = True
        self._calls.give_up()
        self._starter.close()
        with self._lock:
            engines = [member.engine for member in self._members]
            for engine in engines:
                self._calls.stop(engine)
            open_jobs = self._empty()
        for job in open_jobs:
            job.settle(EngineDied("the engines were closed"))
        if self._thread and self._thread is not current_thread():
            self._thread.join(10 * WAIT_SECONDS)

    def _run(self) -> None:
        with suppress(BaseException):  # pump_once has told those who wait
            while not self._is_closed and not self._failure:
                self.pump_once()

    def _await(self, futures: Sequence[Future[R]], replaces_dead: bool) -> Iterator[Future[R]]:
        """Yields the futures as they get done."""
        done: SimpleQueue[Future[R]] = SimpleQueue()
        for future in futures:
            future.add_done_callback(done.put)
        for _ in futures:
            yield self._await_one(done, replaces_dead)

    def _await_one(self, done: SimpleQueue[Future[R]], replaces_dead: bool) -> Future[R]:
        while True:
            with suppress(Empty):
                return done.get_nowait()
            self._check()
            if replaces_dead:
                self._update()
            else:
                self._check_current()
            with suppress(Empty):
                if self._thread is None:
                    self.pump_once()
                    return done.get_nowait()
                return done.get(timeout=WAIT_SECONDS)
            self._calls.watch()

    def _check(self) -> None:
        if self._is_closed:
            raise EngineDied("the engines were closed")
        if self._failure is not None:
            raise self._failure

    def _check_current(self) -> None:
        """Raises EngineDied where no engine has the current weights."""
        with self._lock:
            if len(self._members.outdated) == len(self._members):
                raise self._deaths.last

    def _dispatch(self) -> None:
        """Gives the prompts that wait to engines with room, each time to the one with the fewest responses to do."""
        asked: dict[Member[E], list[tuple[int, Request]]] = {}
        now = self._calls.clock()
        while self._queue:
            if self._queue[0].future.done():  # it was cancelled
                self._queue.popleft()
                continue
            member = self._members.find_idlest()
            if member is None:
                break
            job = self._queue.popleft()
            member.give(job, now)
            self._members.offer(member)
            asked.setdefault(member, []).append((job.number, job.request))
        for member, requests in asked.items():
            self._calls.submit(member.engine, requests)

    def _take(
        self, engine: E, report: Report | Exception, settled: list[tuple[Job, Responses | Exception]]
    ) -> None:
        member = self._members.find(engine)
        if member is None or self._is_closed:
            return  # it was replaced
        if isinstance(report, EngineDied):
            self._replace(member, report)
        elif isinstance(report, Exception):
            raise report
        else:
            finished = member.take(report, self._calls.clock())
            if finished:
                self._deaths.forget()
            settled.extend(finished)
            self._members.offer(member)

    def _look_for_hangs(self) -> None:
        """Replaces engines that have made no token for too long, once a second; with over 100 less often."""
        now = self._calls.clock()
        passed = now - self._looked_at
        if passed < WAIT_SECONDS * max(1.0, len(self._members) / 100):
            return
        self._looked_at = now
        for member, why in self._members.find_hanging(now, passed, self._timeout, self._start_timeout):
            self._replace(member, EngineDied(why))

    def _replace(self, member: Member[E], error: EngineDied, doing: str = "") -> None:
        """Ends an engine, queues its prompts before all others, and starts one in its place."""
        if self._members.find(member.engine) is not member or self._is_closed:
            return  # another thread was faster
        jobs = list(member.jobs.values())
        if jobs and not doing:
            doing = f"was asked {jobs[0].request.prompt.ref.id} to {jobs[-1].request.prompt.ref.id}"
        log.warning(f"engine {member.number} {doing or 'had nothing to do'} and died: {error}")
        self._members.remove(member)
        self._queue.extendleft(reversed(jobs))
        self._calls.stop(member.engine)  # it may still hold memory
        self._deaths.add(jobs, doing or "had nothing to do", error)
        self._num_died += 1
        self._starter.start(member.number)

    def _take_started(self, number: int, found: E | BaseException) -> None:
        """Takes an engine in the place of one that died, or why there is none."""
        try:
            with self._lock:
                self._settle(number, found)
        except BaseException as error:
            self._fail(error)

    def _settle(self, number: int, found: E | BaseException) -> None:
        is_wanted = self._members.is_absent(number) and not self._is_closed and not self._failure
        if isinstance(found, NoRoom) and is_wanted:
            is_news = self._members.lose(number)
            if not self._members and not self._members.list_absent("starting"):
                raise found
            if is_news:
                log.warning(f"the run goes on with {len(self._members)} engines: {found}")
        elif isinstance(found, BaseException):
            if is_wanted:
                raise found
        elif is_wanted:
            self._add(number, found)
            if self._thread:  # else whoever replaced it does
                self._dispatch()
        else:
            self._calls.stop(found)

    def _add(self, number: int, engine: E) -> None:
        self._members.add(Member(number, engine, self._calls.address(engine), self._calls.clock()))

    def _update(self, *, wait: bool = False) -> None:
        """Gives the current weights to engines that lack them and have started; with `wait` to all."""
        while members := self._find_outdated(wait):
            assert self._version is not None
            outcomes = self._calls.update([member.engine for member in members], self._version)
            with self._lock:
                for member, died in zip(members, outcomes, strict=True):
                    self._end_update(member, died)
                self._dispatch()

    def _end_update(self, member: Member[E], died: EngineDied | None) -> None:
        if died is not None:
            self._replace(member, died, "was given weights")
        elif self._members.find(member.engine) is member:
            self._members.end_update(member, self._version, self._calls.clock())
            self._deaths.forget()

    def _find_outdated(self, wait: bool) -> list[Member[E]]:
        """Returns the engines to update, and marks them: they cannot hang by engine.token_timeout meanwhile."""
        if wait:
            self._starter.wait()
        with self._lock:
            self._check()
            outdated = self._members.outdated.values()
            members = [m for m in outdated if wait or self._calls.has_started(m.engine)]
            for member in members:
                member.is_updating = True
            return members

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
            open_jobs = self._empty()
        for job in open_jobs:
            job.settle(error)

    def _empty(self) -> list[Job]:
        """Takes all jobs from the engines and the queue."""
        jobs = [job for member in self._members for job in member.jobs.values()] + list(self._queue)
        self._members.clear()
        self._queue.clear()
        return jobs
