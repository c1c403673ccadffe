"""Runs the parts of a stage: in this process, in processes of this machine, or as Ray Data tasks on a cluster.

A part is most often a shard. A worker that dies is replaced, and its part is run again. So a part's function must
be deterministic, must do nothing when its part is finished already, and must end by renaming its output into place.
Then every executor leaves the same bytes.
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
"""Consecutive deaths of workers without a finished part after which the stage stops."""
_FIX = "if memory ran out, use fewer workers or smaller shards"


def run_parts(
    fn: Callable[[P], R], parts: Sequence[P], *, work: WorkConfig = WorkConfig(), desc: str = ""
) -> list[R]:
    """Returns `fn(part)` of each part, in the order of the parts. The first exception ends the stage.

    Args:
        fn: a module's function, or a functools.partial of one; like the parts it is pickled.

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
    """Yields number and result of each part as it finishes; a pool that lost a worker is replaced."""
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
                seen = f"{breaks} times in a row a worker died before it finished a part"
                raise RuntimeError(f"{seen}; {_FIX}") from error


def _in_one_pool(fn: Callable[[P], R], parts: dict[int, P], workers: int) -> Iterator[tuple[int, R]]:
    # not fork: it would copy locks that other threads hold
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting = iter(list(parts.items()))
        running: dict[Future[R], int] = {}
        while True:
            for number, part in islice(waiting, 2 * workers - len(running)):  # parts may be many
                running[pool.submit(fn, part)] = number
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            # results from before the pool broke count
            for future in sorted(finished, key=lambda f: isinstance(f.exception(), BrokenProcessPool)):
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(fn: Callable[[P], R], parts: Sequence[P], workers: int) -> Iterator[tuple[int, R]]:
    """Runs one Ray Data task for each part; Ray repeats the parts of a dead worker or node."""
    import ray

    from data_pipeline.ray_session import start_ray

    if not ray.is_initialized():
        start_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    held = ray.put(list(parts))

    def run(row: dict) -> dict:
        # Ray Data passes on the text of an exception, not the exception: a user's mistake would look like a crash
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
        raise RuntimeError(f"{MAX_BREAKS} times a worker died of the same part; {_FIX}") from error
