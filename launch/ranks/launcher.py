"""Starts the ranks of a run on this machine, and tells each rank its number, the world size and the rendezvous.

Nothing here depends on what the ranks compute.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Literal, NamedTuple

from data_pipeline.failures import GRACE_SECONDS, Failure, RankError, build_rank_error, call_or_fail
from launch.ranks.gpus import count_gpus
from launch.ranks.identity import Identity, find_identity

PRELOAD = ["megatron_omr.preload"]
"""Imported once by the fork server; every rank is then a copy that starts in a moment."""


class Outcome(NamedTuple):
    """The result of a rank, or what it raised."""

    result: Any = None
    failure: Failure | None = None
    is_lost: bool = False  # the rank ended, or its message could not be read


@dataclass
class LocalRank:
    """A rank's process, and the pipe that its outcome comes through."""

    process: BaseProcess
    reader: Any  # a Connection
    outcome: Outcome | None = None

    def read(self) -> None:
        """Takes the outcome out of the pipe, if it is there."""
        if self.outcome is None and self.reader.poll():
            try:
                self.outcome = self.reader.recv()
            except (
                EOFError,
                OSError,
            ):  # OSError: tensors come as file descriptors of a process that has ended
                self.outcome = Outcome(is_lost=True)


def rank_environment() -> tuple[int, int, str]:
    """(rank, world_size, init_method) of this process, which run_local, torchrun or Slurm's `srun` started.

    Raises:
        ValueError: this process was not launched as a rank.
    """
    identity = find_identity()
    if identity is None:
        raise ValueError(
            f"RANK={os.environ.get('RANK')} and WORLD_SIZE={os.environ.get('WORLD_SIZE')}, but a rank needs both; "
            "start it with run_local, torchrun or srun"
        )
    return identity.rank, identity.world_size, identity.init_method


def launched_by_cluster() -> bool:
    """Returns true if torchrun or srun started this process as a rank."""
    return find_identity() is not None


def count_ranks(processes: int) -> int:
    """Returns the ranks of this run: those that a cluster started, else the processes that are started here."""
    return rank_environment()[1] if launched_by_cluster() else processes


def run_local(
    fn: Callable[..., Any],
    processes: int,
    *args: Any,
    timeout: float | None = None,
    forward: Sequence[signal.Signals] = (),
) -> list[Any]:
    """Calls fn(*args) on `processes` ranks of this machine, waits for all and returns their results.

    Under torchrun or srun this process already is a rank, and fn is called directly. Every rank has RANK,
    LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and INIT_METHOD in its environment. When one fails, or this process
    is interrupted, terminated or killed, all ranks end, with the processes that they started.

    Args:
        fn: a module-level function (ranks import it by name); its arguments and results are pickled.
        timeout: seconds after which all ranks are killed; None sets no limit.
        forward: signals that are sent on to the ranks, where they are blocked until a rank asks for them.

    Raises:
        RankMistake: a rank raised ValueError; this is one, too.
        RankError: a rank raised something else or was killed, or the time ran out.
        SystemExit: a rank called sys.exit(n) with n != 0; this process should end in the same way.
    """
    identity = find_identity()
    if identity is not None:
        os.environ.update(identity.variables())
        return [fn(*args)]
    with (
        sigterm_exits(),
        start_ranks(fn, processes, *args, blocked=forward) as ranks,
        _forwards(forward, ranks),
    ):
        return _wait(ranks, timeout)


def choose_start_method(num_gpus: int) -> Literal["forkserver", "spawn"]:
    """Returns how the ranks of a machine with so many GPUs start.

    A fork server imports the heavy packages once for all ranks. Their imports ask CUDA whether there is a device, and
    a process that has asked cannot use it after a fork: with GPUs, every rank starts as a process of its own.
    """
    return "spawn" if num_gpus else "forkserver"


@contextmanager
def start_ranks(
    fn: Callable[..., Any], processes: int, *args: Any, blocked: Sequence[signal.Signals] = ()
) -> Iterator[list[LocalRank]]:
    """Starts the ranks of run_local; leaving the block kills them, with the processes that they started.

    Args:
        blocked: signals that wait until a rank asks for them.
    """
    context: Any = mp.get_context(choose_start_method(count_gpus()))
    context.set_forkserver_preload(PRELOAD)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    ranks: list[LocalRank] = []
    # blocked here as well: what ranks are made from inherits it
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder, _openmp_threads(threads), _blocks(blocked):
        try:
            for rank in range(processes):
                reader, writer = context.Pipe(duplex=False)
                identity = Identity(
                    rank=rank,
                    world_size=processes,
                    local_rank=rank,
                    local_size=processes,
                    init_method=f"file://{folder}/rendezvous",
                )
                process = context.Process(
                    target=_rank, args=(writer, identity, threads, blocked, fn, args), name=f"rank {rank}"
                )
                ranks.append(LocalRank(process, reader))
                process.start()
                writer.close()  # the rank has its own
            yield ranks
        finally:
            _kill(ranks)


@contextmanager
def _openmp_threads(threads: str) -> Iterator[None]:
    """Sets OMP_NUM_THREADS: the fork server inherits it, and OpenMP reads it when torch is imported there."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


@contextmanager
def _blocks(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Blocks signals in this thread, and in the processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _forwards(signals: Sequence[signal.Signals], ranks: Sequence[LocalRank]) -> Iterator[None]:
    """Sends signals that this process gets to all ranks; they are blocked outside the block."""

    def forward(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.process.exitcode is None and rank.process.pid:
                os.kill(rank.process.pid, number)

    before = {number: signal.signal(number, forward) for number in signals}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        for number, handler in before.items():
            signal.signal(number, handler)


def _rank(
    writer: Any,
    identity: Identity,
    threads: str,
    blocked: Sequence[signal.Signals],
    fn: Callable[..., Any],
    args: tuple,
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    # Its own group: the terminal's Ctrl-C reaches the parent alone, which kills whole groups.
    os.setpgid(0, 0)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = threads
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks of one machine need not listen on others
    os.environ.update(identity.variables())
    failure = call_or_fail(f"rank {identity.rank}", lambda: writer.send(Outcome(fn(*args))))
    if failure is not None:
        writer.send(Outcome(failure=failure))
        sys.exit(1)


def _die_with_parent() -> None:
    """Kills this rank's group when the parent has ended, in whatever way: then the pipe to it closes."""
    parent = mp.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _wait(ranks: Sequence[LocalRank], timeout: float | None) -> list[Any]:
    deadline = None if timeout is None else time.monotonic() + timeout
    while running := [rank for rank in ranks if rank.process.exitcode is None]:
        if any(rank.process.exitcode for rank in ranks):
            break
        sources: dict[Any, LocalRank] = {rank.process.sentinel: rank for rank in running}
        sources |= {rank.reader: rank for rank in running if rank.outcome is None}
        ready = wait(list(sources), None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"{len(running)} of {len(ranks)} ranks were still running after {timeout:g} s")
        for source in ready:
            sources[source].read()
    if any(rank.process.exitcode for rank in ranks):
        raise _failure(ranks)
    for rank in ranks:
        rank.read()
    outcomes = [rank.outcome or Outcome(is_lost=True) for rank in ranks]
    if lost := [rank.process.name for rank, outcome in zip(ranks, outcomes, strict=True) if outcome.is_lost]:
        raise RankError(
            f"{', '.join(lost)} ended without a result that can be read; return plain values instead of tensors"
        )
    return [outcome.result for outcome in outcomes]


def _failure(ranks: Sequence[LocalRank]) -> RankError | SystemExit:
    """Returns the error that names the cause, after the other ranks had the time to send theirs."""
    until = time.monotonic() + GRACE_SECONDS
    failures: list[Failure] = []
    for rank in ranks:
        rank.process.join(max(0.0, until - time.monotonic()))
        rank.read()
        code = rank.process.exitcode or 0
        if code < 0:
            reason = " (which often means that memory ran out)" if -code == signal.SIGKILL else ""
            death = f"by {signal.Signals(-code).name}{reason}"
            failures.append(Failure(rank=rank.process.name, time=time.time_ns(), death=death))
        elif rank.outcome and rank.outcome.failure:
            failures.append(rank.outcome.failure)
    if failures:
        return build_rank_error(failures)
    return SystemExit(max(rank.process.exitcode or 0 for rank in ranks))


def _kill(ranks: Sequence[LocalRank]) -> None:
    """Kills the group of every rank: a rank that failed may have left processes that it started."""
    started = {rank.process.pid: rank.process for rank in ranks if rank.process.pid}
    for pid, process in started.items():
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # ended with all it started, or not yet a group of its own
            process.kill()
    for process in started.values():
        process.join()
    for rank in ranks:
        rank.reader.close()


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that `finally` runs; only a main thread may, and needs to, do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is leave:  # else what ran has decided otherwise
            signal.signal(signal.SIGTERM, before)
