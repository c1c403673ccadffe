"""Measures the manager itself: processor time and memory of the driver, with modelled engines that cost it nothing.

The modelled engines run in the same process, so their own processor time is measured and taken off.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.scale.cluster import GROUP, Cluster, ClusterConfig, make_prompts
from rl.config import EngineConfig, SamplingConfig
from rl.rollout.calls import Request
from rl.rollout.manager import RolloutManager
from rl.types import Prompt, Responses


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What the manager cost for a number of prompts that were all submitted at once."""

    prompts: int
    generation_seconds: float  # of the virtual clock
    submit_seconds: float  # of the processor
    wait_seconds: float  # of the processor, without the model's
    restarts: int
    polls: int  # that brought reports
    reports: int
    submits: int

    @property
    def share(self) -> float:
        """Processor time over the time in which the engines generate."""
        return (self.submit_seconds + self.wait_seconds) / self.generation_seconds

    @property
    def seconds_a_prompt(self) -> float:
        return (self.submit_seconds + self.wait_seconds) / self.prompts

    def describe(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "seconds of generation": round(self.generation_seconds, 1),
            "processor seconds to submit": self.submit_seconds,
            "processor seconds to wait": self.wait_seconds,
            "share of generation": self.share,
            "microseconds a prompt": 1e6 * self.seconds_a_prompt,
            "engines replaced": self.restarts,
            "calls a second": {
                "polls": self.polls / self.generation_seconds,
                "reports": self.reports / self.generation_seconds,
                "submits": self.submits / self.generation_seconds,
            },
        }


def measure_overhead(
    num_engines: int, num_prompts: int, config: ClusterConfig, *, n: int = GROUP
) -> Overhead:
    """Submits prompts, and waits for all of them."""
    cluster, manager = start_engines(num_engines, config)
    prompts = make_prompts(num_prompts)
    modelled, start, began = cluster.cpu, time.thread_time(), cluster.now
    futures = submit(manager, prompts, n)
    submitted, modelled_submit = time.thread_time(), cluster.cpu
    manager.wait(futures)
    waited = time.thread_time()
    assert all(future.done() for future in futures), "a prompt was lost"
    return Overhead(
        prompts=num_prompts,
        generation_seconds=cluster.now - began,
        submit_seconds=submitted - start - (modelled_submit - modelled),
        wait_seconds=waited - submitted - (cluster.cpu - modelled_submit),
        restarts=manager.restarts,
        polls=cluster.num_polls,
        reports=cluster.num_reports,
        submits=cluster.num_submits,
    )


def measure_memory(num_engines: int, counts: Sequence[int], config: ClusterConfig) -> dict[str, Any]:
    """Returns the driver's bytes for prompts in flight, by their number, and the straight line through them.

    Counted are requests, jobs and futures, at the manager and on their way, as tracemalloc sees them; neither the
    prompts, which the caller has already, nor the modelled engines.
    """
    found: dict[int, int] = {}
    for count in counts:
        cluster, manager = start_engines(num_engines, config)
        prompts = make_prompts(count)
        gc.collect()
        tracemalloc.start()
        futures = submit(manager, prompts)
        found[count] = tracemalloc.get_traced_memory()[0] - cluster.bytes
        tracemalloc.stop()
        del futures, manager
    sizes = np.array(list(found.items()), float)
    slope, base = np.polyfit(sizes[:, 0], sizes[:, 1], 1)
    fitted = base + slope * sizes[:, 0]
    return {
        "bytes": {str(count): size for count, size in found.items()},
        "bytes a prompt": slope,
        "bytes without prompts": base,
        "largest deviation from the line": float(np.max(np.abs(fitted - sizes[:, 1]) / sizes[:, 1])),
    }


def measure_waiting(count: int, repeats: int = 20) -> dict[str, float]:
    """Returns the microseconds in which a caller learns which of `count` futures is done next, in three ways."""
    futures: list[Future[Responses]] = [Future() for _ in range(count)]
    start = time.thread_time()
    for future in futures[:repeats]:
        future.set_result(Responses())
        wait([future, *futures[repeats:]], return_when=FIRST_COMPLETED)
    each = (time.thread_time() - start) / repeats
    futures = [Future() for _ in range(count)]
    done: list[Future[Responses]] = []
    start = time.thread_time()
    for future in futures:
        future.add_done_callback(done.append)
    for future in futures:
        future.set_result(Responses())
    assert len(done) == count
    callback = (time.thread_time() - start) / count
    return {"concurrent.futures.wait": 1e6 * each, "done callback, as the manager": 1e6 * callback}


def start_engines(num_engines: int, config: ClusterConfig) -> tuple[Cluster, RolloutManager[Any]]:
    """Returns modelled engines that have weights, and their manager."""
    cluster = Cluster(config)
    engine = EngineConfig(num_engines=num_engines, max_num_seqs=config.slots)
    manager = RolloutManager(cluster.calls(), engine, threaded=False)
    manager.update_weights(0)
    return cluster, manager


def submit(
    manager: RolloutManager[Any], prompts: Sequence[Prompt], n: int = GROUP
) -> list[Future[Responses]]:
    sampling = SamplingConfig(n=n)
    return manager.submit([Request(prompt=prompt, sampling=sampling, seed=0) for prompt in prompts])
