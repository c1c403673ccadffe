"""Starts the ranks of a run on this machine, and tells each rank who it is.

The sole reader of cluster environment variables: everything below is handed rank, world size and rendezvous.
It does not know what the ranks compute.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

PRELOAD = ["megatron_omr.preload"]
"""Imported once by the fork server; every rank is then a copy that starts in a moment."""

_GRACE_SECONDS = 3.0
"""After a rank failed, its peers get this long to say what they saw before they are ended."""


class RankError(RuntimeError):
    """One or more ranks raised, were killed or ran out of time; the message holds their tracebacks."""


def rank_environment() -> tuple[int, int, str]:
    """(rank, world_size, init_method) of this process, which run_local, torchrun or Slurm's `srun` started.

    Raises:
        ValueError: nobody launched this process as a rank.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), env.get("INIT_METHOD", "env://")
    if "SLURM_STEP_NUM_TASKS" in env:  # set by srun, not by the batch script around it
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), "env://"
    raise ValueError(
        f"RANK={env.get('RANK')} and WORLD_SIZE={env.get('WORLD_SIZE')}, but a rank needs both; "
        "start it with run_local, torchrun or srun"
    )


def launched_by_cluster() -> bool:
    """Whether torchrun or srun started this process as a rank."""
    return "SLURM_STEP_NUM_TASKS" in os.environ or ("RANK" in os.environ and "WORLD_SIZE" in os.environ)


def run_local(fn: Callable[..., None], processes: int, *args: Any, timeout: float | None = None) -> None:
    """Call fn(*args) on `processes` ranks of this machine and wait for all of them.

    Under torchrun or srun this process already is a rank, and fn is called directly. Otherwise each rank has
    RANK, LOCAL_RANK, WORLD_SIZE and INIT_METHOD in its environment. When one fails, or this process is
    interrupted, terminated or killed, all ranks end, with the processes that they started.

    Args:
        fn: a module-level function (ranks import it by name); its arguments are pickled.
        timeout: seconds after which all ranks are ended; None waits for ever.

    Raises:
        RankError: a rank raised or was killed, or the time ran out.
        SystemExit: a rank called sys.exit(n) with n != 0; this process should end in the same way.
    """
    if launched_by_cluster():
        rank, world_size, init_method = rank_environment()
        local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "0")
        _set_rank(rank, local_rank, world_size, init_method)
        fn(*args)
        return
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory(prefix="omr-") as name, _sigterm_exits():
        folder = Path(name)
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
        ranks = [
            context.Process(
                target=_rank, args=(folder, rank, processes, threads, fn, args), name=f"rank {rank}"
            )
            for rank in range(processes)
        ]
        try:
            _start(ranks, threads)
            _wait(ranks, folder, timeout)
        finally:
            _end(ranks)


def _set_rank(rank: int, local_rank: int | str, world_size: int, init_method: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(world_size), INIT_METHOD=init_method
    )


def _start(ranks: list[Any], threads: str) -> None:
    """The fork server takes its environment from this process, and OpenMP reads it when torch is imported."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads
    try:
        for process in ranks:
            process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]


def _rank(
    folder: Path, rank: int, world_size: int, threads: str, fn: Callable[..., None], args: tuple
) -> None:
    os.setpgid(0, 0)  # its own group: the terminal's Ctrl-C reaches the parent alone, which ends whole groups
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = threads
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks of one machine need not listen on others
    _set_rank(rank, rank, world_size, f"file://{folder}/rendezvous")
    try:
        fn(*args)
    except Exception:
        (folder / f"{time.time_ns()}.{rank}").write_text(traceback.format_exc())
        sys.stdout.flush()
        sys.exit(1)


def _die_with_parent() -> None:
    """The pipe to the parent closes however the parent ends, SIGKILL included."""
    parent = mp.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _wait(ranks: list[Any], folder: Path, timeout: float | None) -> None:
    deadline = None if timeout is None else time.monotonic() + timeout
    running: dict[Any, Any] = {process.sentinel: process for process in ranks}
    while running and not any(process.exitcode for process in ranks):
        ready = wait(list(running), None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"{len(running)} of {len(ranks)} ranks were still running after {timeout:g} s")
        for sentinel in ready:
            running.pop(sentinel).join()
    if any(process.exitcode for process in ranks):
        _wait_for_last_words(ranks)
        _raise_failure(ranks, folder)


def _wait_for_last_words(ranks: list[Any]) -> None:
    until = time.monotonic() + _GRACE_SECONDS
    for process in ranks:
        process.join(max(0.0, until - time.monotonic()))


def _raise_failure(ranks: list[Any], folder: Path) -> None:
    """Tracebacks in the order in which they were written: the first is the cause, others often its echo."""
    reports = sorted(path for path in folder.iterdir() if path.name != "rendezvous")
    if reports:
        raise RankError("\n".join(f"rank {path.suffix[1:]} failed:\n{path.read_text()}" for path in reports))
    killed = [process for process in ranks if process.exitcode is not None and process.exitcode < 0]
    if killed:
        names = ", ".join(f"{p.name} by {signal.Signals(-p.exitcode).name}" for p in killed)
        raise RankError(f"killed: {names} (SIGKILL often means that memory ran out)")
    raise SystemExit(max(process.exitcode or 0 for process in ranks))


def _end(ranks: list[Any]) -> None:
    """Kill the group of every rank: a rank that failed may have left processes that it started."""
    started = [process for process in ranks if process.pid is not None]
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # ended with all it started, or not yet a group of its own
            process.kill()
    for process in started:
        process.join()


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that `finally` runs; only a main thread may, and needs to, do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
