"""Answer checking that nothing can hang: math-verify runs in processes which die at their deadline.

A worker gets a few answers at a time, arms a kernel alarm before each and reports each. When the alarm rings or
the parser crashes, the worker dies, that answer is counted as wrong, and a new worker takes its place; the other
answers go on. The calling process needs neither signals nor threads for it, so it may be a Ray actor, and what a
worker says is never unpickled.
Which answers are right is `verify`'s knowledge, what they are worth the caller's.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Lock
from typing import cast

from data_pipeline.verify.check import Verdict, after_math, check_text, is_equal_math, needs_math
from data_pipeline.verify.config import CheckerConfig, Mode

_GIB = 1 << 30
_BATCH = 16  # most answers a worker gets at once
_BATCH_LEN = 16_384  # and about how many characters: a giant answer goes alone


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    is_ready: bool = False  # has imported its parser
    tasks: deque[int] = field(default_factory=deque)  # the answers it has; it is checking the first


class VerifyPool:
    """Checks answers in `config.workers` processes, each in `config.deadline` seconds and `memory_gib` of memory.

    `counts` says how many answers were decided by what: exact, choice, number, math, none, timeout (the deadline
    passed) or error (the worker died otherwise, twice: once may be the fault of the machine). Threads that
    share a pool are served one after the other. Close it, or use it as a context manager.
    """

    def __init__(self, config: CheckerConfig, *, memory_gib: float = 4.0) -> None:
        self.counts: Counter[str] = Counter()
        self.config = config
        self._memory = int(memory_gib * _GIB)
        self._lock = Lock()
        self._workers: list[_Worker] = []
        for _ in range(config.workers):
            self._add_worker()

    def __enter__(self) -> VerifyPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_many(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts on (response, reference answer) pairs, in their order.

        Raises:
            RuntimeError: the pool is closed, or its workers cannot start.
        """
        verdicts = [check_text(response, answer, self.config.mode) for response, answer in pairs]
        tasks = {
            i: (verdict.extracted, answer)
            for i, (verdict, (_, answer)) in enumerate(zip(verdicts, pairs, strict=True))
            if needs_math(verdict)
        }
        with self._lock:
            try:
                outcomes = self._run(tasks)
            except BaseException:  # Ctrl-C, too: replies still on their way must not meet the next caller
                self._remove_workers()
                raise
            for i, outcome in outcomes.items():
                verdicts[i] = after_math(verdicts[i], outcome)
            self.counts.update(verdict.decided_by for verdict in verdicts)
        return verdicts

    def close(self) -> None:
        """End the workers; a second time does nothing."""
        with self._lock:
            self._remove_workers()

    def _run(self, tasks: dict[int, tuple[str, str]]) -> dict[int, str]:
        """What came of each task: math, none, timeout or error."""
        if not self._workers:
            raise RuntimeError("this VerifyPool is closed; make a new one")
        waiting = deque(tasks)
        asked_again: set[int] = set()
        outcomes: dict[int, str] = {}
        while len(outcomes) < len(tasks):
            for worker in list(self._workers):
                if waiting and worker.is_ready and not worker.tasks:
                    self._send(worker, self._take(waiting, tasks, asked_again), waiting, tasks)
            by_connection: dict[object, _Worker] = {worker.connection: worker for worker in self._workers}
            for connection in wait([worker.connection for worker in self._workers]):
                worker = by_connection[connection]
                index, outcome = worker.tasks[0] if worker.tasks else None, self._receive(worker)
                if outcome in ("timeout", "error"):
                    waiting.extendleft(reversed(list(worker.tasks)[1:]))
                if outcome == "error" and index is not None and index not in asked_again:
                    asked_again.add(index)
                    waiting.appendleft(index)
                elif index is not None:
                    outcomes[index] = outcome
        return outcomes

    def _take(self, waiting: deque[int], tasks: dict[int, tuple[str, str]], alone: set[int]) -> list[int]:
        """The next answers for one worker; one that killed a worker goes alone, lest it takes the blame of others."""
        most = min(_BATCH, -(-len(waiting) // len(self._workers)))
        taken, length = [waiting.popleft()], 0
        while waiting and len(taken) < most and not {taken[-1], waiting[0]} & alone:
            length += sum(map(len, tasks[taken[-1]]))
            if length + sum(map(len, tasks[waiting[0]])) > _BATCH_LEN:
                break
            taken.append(waiting.popleft())
        return taken

    def _send(
        self, worker: _Worker, taken: list[int], waiting: deque[int], tasks: dict[int, tuple[str, str]]
    ) -> None:
        try:
            worker.connection.send_bytes(json.dumps([tasks[index] for index in taken]).encode())
        except OSError:  # it died while it was idle: no answer's fault
            waiting.extendleft(reversed(taken))
            self._replace_worker(worker)
        else:
            worker.tasks.extend(taken)

    def _receive(self, worker: _Worker) -> str:
        """The outcome a worker reports; of a dead one, what it died of."""
        try:
            outcome = worker.connection.recv_bytes().decode()
        except (EOFError, OSError):
            return self._replace_worker(worker)
        if worker.is_ready:
            worker.tasks.popleft()
        worker.is_ready = True
        return outcome

    def _replace_worker(self, worker: _Worker) -> str:
        exit_code = self._remove_worker(worker)
        if not worker.is_ready:
            raise RuntimeError(
                f"a checker process ended before it was ready (exit code {exit_code}, its error is above); "
                f"install math-verify, or raise memory_gib={self._memory / _GIB:g} if it ran out of memory"
            )
        self._add_worker()
        return "timeout" if exit_code == -signal.SIGALRM else "error"

    def _add_worker(self) -> None:
        # spawn, because a fork copies the locks of the caller's other threads in whatever state they are.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self.config.mode, self.config.deadline, self._memory), daemon=True
        )
        process.start()
        theirs.close()  # now the worker's death closes the connection
        self._workers.append(_Worker(process, cast(Connection, ours)))

    def _remove_workers(self) -> None:
        for worker in list(self._workers):
            self._remove_worker(worker)

    def _remove_worker(self, worker: _Worker) -> int | None:
        """End a worker, if it still lives; its exit code."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        return worker.process.exitcode


def _serve(connection: Connection, mode: Mode, deadline: float, memory: int) -> None:
    """A worker's life: lists of (extracted, answer) in, math or none out for each, until the pool is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    # The default action ends the process in the kernel, even inside C code that never looks at signals. So a
    # worker whose caller was killed does not outlive its deadline either.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CORE, 0)
    is_equal_math(r"$\frac{x}{2}+1$", "$x+2$", mode)  # imports and compiles, so that no answer pays for it
    connection.send_bytes(b"ready")
    while True:
        try:
            tasks = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            return  # the pool is gone; reset, where it left our last word unread
        for extracted, answer in tasks:
            signal.setitimer(signal.ITIMER_REAL, deadline)
            is_equal = is_equal_math(extracted, answer, mode)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(b"math" if is_equal else b"none")


def _limit(what: int, limit: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
