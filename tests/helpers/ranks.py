"""Run a function on N gloo ranks, fast: a fork server imports the heavy packages once per session."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PRELOAD = ["megatron_omr.preload"]
_context = mp.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Call fn(*args) in `world_size` processes with RANK, WORLD_SIZE and INIT_METHOD set; return their results.

    Raises:
        AssertionError: a rank raised (all tracebacks are shown) or the time ran out (all ranks are killed).
    """
    queue = _context.SimpleQueue()
    with start_ranks(fn, world_size, *args, queue=queue) as ranks:
        return _collect(queue, ranks, timeout)


@contextmanager
def start_ranks(
    fn: Callable[..., Any], world_size: int, *args: Any, queue: Any = None
) -> Iterator[list[Any]]:
    """The processes of run_ranks while they run; leaving the block kills them (SIGKILL)."""
    queue = queue or _context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        init_method = f"file://{folder}/rendezvous"
        ranks = [
            _context.Process(target=_rank, args=(queue, fn, r, world_size, init_method, args), daemon=False)
            for r in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            yield ranks
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _collect(queue: Any, ranks: list[Any], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    errors: list[str] = []
    deadline = time.monotonic() + timeout
    while len(results) + len(errors) < len(ranks):
        if not queue.empty():
            rank, ok, value = queue.get()
            if ok:
                results[rank] = value
            else:
                errors.append(f"rank {rank}:\n{value}")
                deadline = min(deadline, time.monotonic() + 3)  # peers of a dead rank would wait for ever
            continue
        silent = [r for r, p in enumerate(ranks) if p.exitcode not in (None, 0) and r not in results]
        if time.monotonic() > deadline or (silent and not errors and queue.empty()):
            errors.append(f"no result from some ranks; exit codes {[p.exitcode for p in ranks]}")
            break
        time.sleep(0.01)
    assert not errors, "\n".join(errors)
    return [results[r] for r in range(len(ranks))]


def _rank(
    queue: Any, fn: Callable[..., Any], rank: int, world_size: int, init_method: str, args: tuple
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), INIT_METHOD=init_method
    )
    try:
        queue.put((rank, True, fn(*args)))
    except BaseException:
        queue.put((rank, False, traceback.format_exc()))


def init_ranks(parallel: Any, *, seed: int = 1234) -> Any:
    """Inside a rank: megatron_omr.parallel.initialize with what run_ranks put into the environment."""
    from megatron_omr.parallel import initialize

    env = os.environ
    return initialize(
        parallel,
        rank=int(env["RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        init_method=env["INIT_METHOD"],
        seed=seed,
    )
