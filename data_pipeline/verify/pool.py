"""Checks responses without hanging: math-verify runs in processes that are killed at a deadline.

A worker process gets a few responses at a time, sets a kernel alarm before each and reports each. When the alarm
fires or the parser crashes, the process dies, that response counts as wrong, the others in its batch go to the next
worker, and a new process takes its place. The alarm counts the processor's time, so that a busy machine, or a process
that was stopped, does not make a response wrong. A worker that does not answer at all is killed like one that crashed.
The calling process needs neither signals nor threads, so it may be a Ray actor, and bytes from a worker are never
unpickled.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import resource
import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock
from typing import cast

from data_pipeline.files import to_json
from data_pipeline.verify.check import Verdict, check_text, is_equal_math, needs_math, with_outcome
from data_pipeline.verify.config import CheckerConfig

log = logging.getLogger(__name__)

_GIB = 1 << 30
_BATCH = 16  # most responses a worker gets at once
_BATCH_LEN = 16_384  # most characters in a batch of more than one
_SILENCE = 30.0  # seconds in which a worker that has something to do neither answers nor computes
_MAX_STARTS = 3  # of workers that end, one after the other, before they are ready


@dataclass(eq=False)
class _Task:
    """An answer to compare with its reference by math-verify."""

    index: int
    extracted: str
    answer: str
    outcome: str = ""  # math | none | timeout | error
    is_retry: bool = False  # it was being checked when a worker crashed


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    is_ready: bool = False  # has imported its parser
    computed: float = 0.0  # its processor time when it was last seen to compute
    heard: float = field(default_factory=time.monotonic)  # when that was, or it last answered
    tasks: deque[_Task] = field(default_factory=deque)  # it is checking the first


class VerifyPool:
    """Checks responses in `config.workers` processes, each in `config.deadline` seconds and `memory_gib` of memory.

    `counts` holds the number of responses by `Verdict.decided_by`; error means that a worker crashed or hung twice,
    since once may be the machine's fault. Threads that share a pool are served one after the other. Close it, or use
    it as a context manager.
    """

    def __init__(self, config: CheckerConfig, *, memory_gib: float = 4.0) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()
        self._memory = int(memory_gib * _GIB)
        self._lock = RLock()
        self._workers: list[_Worker] = []
        self._failed_starts = 0  # one after the other
        for _ in range(config.workers):
            self._add_worker()

    def __enter__(self) -> VerifyPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Returns verdicts on (response, reference answer) pairs, in their order.

        Raises:
            RuntimeError: the pool is closed, or its workers cannot start.
        """
        verdicts = [check_text(response, answer, self.config.mode) for response, answer in pairs]
        tasks = [
            _Task(index, verdict.extracted, answer)
            for index, (verdict, (_, answer)) in enumerate(zip(verdicts, pairs, strict=True))
            if needs_math(verdict)
        ]
        with self._lock:
            try:
                self._run(tasks)
            except BaseException:  # also Ctrl-C: replies still to come must not reach the next caller
                self.close()
                raise
            for task in tasks:
                verdicts[task.index] = with_outcome(verdicts[task.index], task.outcome)
            self.counts.update(verdict.decided_by for verdict in verdicts)
        return verdicts

    def close(self) -> None:
        """Ends the workers; a second call does nothing."""
        with self._lock:
            for worker in list(self._workers):
                self._remove_worker(worker)

    def _run(self, tasks: list[_Task]) -> None:
        """Sets the outcome of each task."""
        if not self._workers:
            raise RuntimeError("this VerifyPool is closed; make a new one")
        waiting = deque(tasks)
        while waiting or any(worker.tasks for worker in self._workers):
            for worker in list(self._workers):
                if waiting and worker.is_ready and not worker.tasks:
                    self._send_batch(worker, waiting)
            heard = wait([worker.connection for worker in self._workers], timeout=1.0)
            for worker in list(self._workers):
                if worker.connection in heard:
                    self._handle_reply(worker, waiting)
                else:
                    self._check_silence(worker)

    def _send_batch(self, worker: _Worker, waiting: deque[_Task]) -> None:
        batch = self._take_batch(waiting)
        try:
            worker.connection.send_bytes(to_json([(t.extracted, t.answer) for t in batch]).encode())
        except OSError:  # it died while idle: no task crashed it
            waiting.extendleft(reversed(batch))
            self._replace_worker(worker)
        else:
            worker.tasks.extend(batch)
            worker.heard = time.monotonic()

    def _check_silence(self, worker: _Worker) -> None:
        """Kills a worker that hangs, so that its connection ends. One that computes has an alarm of its own."""
        computed, now = _read_processor_time(worker.process.pid), time.monotonic()
        if computed != worker.computed or worker.is_ready and not worker.tasks:
            worker.computed, worker.heard = computed, now
        if now - worker.heard > _SILENCE:
            doing = f"the answer {worker.tasks[0].extracted[:100]!r}" if worker.tasks else "its start"
            log.warning(
                f"the checker waited {now - worker.heard:.0f} s for process {worker.process.pid}, which is at {doing} "
                "and does not run: it was stopped or hangs, and is replaced"
            )
            worker.process.kill()

    def _take_batch(self, waiting: deque[_Task]) -> list[_Task]:
        """Takes the next tasks for one worker. A retry goes alone: if it crashes again, the crash is its own."""
        most = min(_BATCH, -(-len(waiting) // len(self._workers)))
        batch, length = [waiting.popleft()], 0
        while waiting and len(batch) < most and not (batch[-1].is_retry or waiting[0].is_retry):
            length += len(batch[-1].extracted) + len(batch[-1].answer)
            if length + len(waiting[0].extracted) + len(waiting[0].answer) > _BATCH_LEN:
                break
            batch.append(waiting.popleft())
        return batch

    def _handle_reply(self, worker: _Worker, waiting: deque[_Task]) -> None:
        """Reads one reply. Where the worker died, its first task crashed it, and the others wait again."""
        try:
            outcome = worker.connection.recv_bytes().decode()
        except (EOFError, OSError):
            outcome = self._replace_worker(worker)
            waiting.extendleft(reversed(list(worker.tasks)[1:]))
        else:
            worker.is_ready, self._failed_starts = True, 0
        worker.heard = time.monotonic()
        if not worker.tasks:
            return  # it has just started, or died while idle
        task = worker.tasks.popleft()
        if outcome == "error" and not task.is_retry:
            task.is_retry = True
            waiting.appendleft(task)
        else:
            task.outcome = outcome

    def _replace_worker(self, worker: _Worker) -> str:
        """Starts a worker in the place of a dead one, and returns the outcome of the task that it was checking."""
        exit_code = self._remove_worker(worker)
        self._failed_starts += not worker.is_ready
        if self._failed_starts >= _MAX_STARTS:
            raise RuntimeError(
                f"{_MAX_STARTS} checker processes ended before they were ready (exit code {exit_code}, the errors are "
                f"above); install math-verify, or raise memory_gib={self._memory / _GIB:g} if it ran out of memory"
            )
        self._add_worker()
        return "timeout" if exit_code == -signal.SIGPROF else "error"

    def _add_worker(self) -> None:
        # spawn, because a fork copies the locks of the caller's other threads in whatever state they are.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.config, self._memory), daemon=True)
        process.start()
        theirs.close()  # now the worker's death closes the connection
        self._workers.append(_Worker(process, cast(Connection, ours)))

    def _remove_worker(self, worker: _Worker) -> int | None:
        """Ends a worker, if it is still alive, and returns its exit code."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        return worker.process.exitcode


def _read_processor_time(pid: int | None) -> float:
    """Returns the processor's time that a process has used, in clock ticks; 0 of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return float(fields[11]) + float(fields[12])


def _serve(connection: Connection, config: CheckerConfig, memory: int) -> None:
    """Runs a worker: receives lists of (extracted, answer), sends math or none for each, until the pool is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C
    # The default action ends the process in the kernel, even inside C code that never looks at signals. So a
    # worker whose caller was killed does not outlive its deadline either.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CORE, 0)
    is_equal_math(r"$\frac{x}{2}+1$", "$x+2$", config.mode)  # imports before the first deadline starts
    connection.send_bytes(b"ready")
    while True:
        try:
            tasks = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            return  # the pool is gone; reset, where it left our last reply unread
        for extracted, answer in tasks:
            signal.setitimer(signal.ITIMER_PROF, config.deadline)
            is_equal = is_equal_math(extracted, answer, config.mode)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send_bytes(b"math" if is_equal else b"none")


def _limit(what: int, limit: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
