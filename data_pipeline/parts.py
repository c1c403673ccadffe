"""Runs the parts of a stage: in this process, in processes of this machine, or as Ray Data tasks on a cluster.

A stage works part by part (most often: shard by shard), and a part may be run twice, because a worker that dies
is replaced and its part run again. So a part's function is deterministic, does nothing when the part is done
already, and ends by renaming its output into place. Then every executor leaves the same bytes.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from data_pipeline.config import WorkConfig

P = TypeVar("P")
R = TypeVar("R")

MAX_BREAKS = 3
"""Workers that may die in a row without any part being finished; then the parts are at fault, not the machine."""


def run_parts(
    fn: Callable[[P], R], parts: Sequence[P], *, work: WorkConfig = WorkConfig(), desc: str = ""
) -> list[R]:
    """Returns `fn` of each part, in order of the parts. An exception that it raises ends the stage and is raised here.

    Args:
        fn: a module's function, or a functools.partial of one: it is pickled to other processes, as parts are.

    Raises:
        RuntimeError: workers keep dying.
    """
    if work.executor == "ray":
        done = _on_ray(fn, parts, work.workers)
    elif work.workers == 1 or len(parts) < 2:
        done = ((number, fn(part)) for number, part in enumerate(parts))
    else:
        done = _in_processes(fn, parts, min(work.workers, len(parts)))
    results = dict(tqdm(done, desc=desc, total=len(parts), unit=" parts", disable=None, delay=1))
    return [results[number] for number in range(len(parts))]


def _in_processes(fn: Callable[[P], R], parts: Sequence[P], workers: int) -> Iterator[tuple[int, R]]:
    """Parts with their numbers as they get done; a pool that lost a worker is replaced."""
    missing = dict(enumerate(parts))
    breaks = 0
    while missing:
        before = len(missing)
        try:
            for number, result in _in_one_pool(fn, missing, workers):
                del missing[number]
                yield number, result
        except BrokenProcessPool as error:
            breaks = breaks + 1 if len(missing) == before else 1
            if breaks == MAX_BREAKS:
                seen = (
                    f"{breaks} times in a row a worker died before any of {len(missing)} parts was finished"
                )
                raise _keeps_dying(seen) from error


def _in_one_pool(fn: Callable[[P], R], parts: dict[int, P], workers: int) -> Iterator[tuple[int, R]]:
    # spawn: a fork would copy the locks of this process's other threads in whatever state they are
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        coming = iter(list(parts.items()))
        running: dict[Future[R], int] = {}
        while True:
            for number, part in islice(coming, 2 * workers - len(running)):  # no more: parts may be many
                running[pool.submit(fn, part)] = number
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            # what was done before the pool broke counts
            for future in sorted(finished, key=lambda f: isinstance(f.exception(), BrokenProcessPool)):
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(fn: Callable[[P], R], parts: Sequence[P], workers: int) -> Iterator[tuple[int, R]]:
    """One Ray Data task for each part; Ray runs the parts of a dead worker or node again."""
    import ray

    from data_pipeline.ray_session import start_ray

    if not ray.is_initialized():
        start_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    held = ray.put(list(parts))

    def run(row: dict) -> dict:
        # Ray Data passes on what an exception says, not the exception: a user's mistake would look like a crash
        try:
            return {"number": row["id"], "result": [fn(ray.get(held)[row["id"]])], "error": [None]}
        except Exception as error:
            return {"number": row["id"], "result": [None], "error": [error]}

    numbers = ray.data.range(len(parts), override_num_blocks=max(1, len(parts)))
    rows = numbers.map(run, concurrency=workers or None, max_retries=MAX_BREAKS - 1).iter_rows()
    try:
        for row in rows:
            if row["error"][0] is not None:
                raise row["error"][0]
            yield row["number"], row["result"][0]
    except ray.exceptions.WorkerCrashedError as error:
        raise _keeps_dying(f"{MAX_BREAKS} times a worker died of the same part") from error


def _keeps_dying(seen: str) -> RuntimeError:
    return RuntimeError(f"{seen}, out of memory perhaps; use fewer workers, or smaller shards")
