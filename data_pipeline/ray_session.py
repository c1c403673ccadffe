"""Starts and stops Ray, on this machine or in a cluster, for curation and for the RL loop."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._common.utils import get_system_memory
from ray._private import ray_constants
from ray._private.utils import get_shared_memory_bytes

from data_pipeline.failures import RankError
from data_pipeline.left_over import end_processes

STORE_SHARE, SHARED_MEMORY_SHARE = 0.1, 0.8
"""Largest parts of the machine's memory, and of what is free of /dev/shm, that Ray's object store takes."""
SMALLEST_STORE, LARGEST_STORE = 80 << 20, 16 << 30
"""Bytes: Ray refuses less than 75 MiB. A step of 2,048 rollouts of 28,696 tokens has 0.5 GB; images and weights do not
pass through the store."""
JOIN_SECONDS = 300.0
"""Limit of the wait for the other nodes."""


def start_ray(*, nodes: int = 1) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine alone: loopback, no dashboard.

    Args:
        nodes: machines that the cluster must have before this returns.

    Raises:
        RankError: they did not join within JOIN_SECONDS.
    """
    with _keeps_sigterm():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        else:
            _start_here()
    _wait_for_nodes(nodes)


def keep_no_events() -> None:
    """Turns off Ray's record of calls, of up to 100,000, in processes to come: memory that grows with every step."""
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")


def stop_ray() -> None:
    """Stops Ray and every process that this one started through it, those that do not answer, too."""
    node = ray._private.worker._global_node
    ray.shutdown()
    if node is not None and node.is_head():
        end_processes(Path(node.get_session_dir_path()))


def choose_store_bytes(memory: int, shared_memory: int) -> int:
    """Returns the size of Ray's object store on a machine with so many bytes of memory and of free /dev/shm.

    Where /dev/shm is smaller than the smallest store, as in containers by default, Ray keeps it in a file.
    """
    fitting = min(int(STORE_SHARE * memory), int(SHARED_MEMORY_SHARE * shared_memory), LARGEST_STORE)
    return max(fitting, SMALLEST_STORE)


def find_store_bytes() -> int:
    """Returns the size of Ray's object store on this machine."""
    return choose_store_bytes(get_system_memory(), get_shared_memory_bytes())


def _start_here() -> None:
    # otherwise Ray replaces the loopback address by the machine's own and listens on every interface
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    keep_no_events()
    # otherwise Ray keeps one in the user's folder
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=find_store_bytes(),
        logging_level=logging.ERROR,
        log_to_driver=False,  # actors' errors are raised here; their output stays in Ray's session folder
        _node_ip_address="127.0.0.1",
    )


def _wait_for_nodes(wanted: int) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    while (found := sum(node["Alive"] for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            raise RankError(
                f"{found} of {wanted} nodes joined Ray within {JOIN_SECONDS:g} s; the output of the other nodes' tasks "
                "says why the rest did not"
            )
        time.sleep(0.2)


@contextmanager
def _keeps_sigterm() -> Iterator[None]:
    """Puts this process' handler of SIGTERM back, in whose place Ray sets one that aborts the process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
