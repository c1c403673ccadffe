"""Starts and stops Ray, on this machine or in a cluster, for curation and for the RL loop."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading

import ray
from ray._private import ray_constants

OBJECT_STORE_BYTES = 128 * 2**20
"""Size of Ray's object store: references, token ids and rewards pass through it, images and weights do not."""


def start_ray() -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine alone: loopback, no dashboard."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init()
        return
    # otherwise Ray replaces the loopback address by the machine's own and listens on every interface
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # otherwise Ray keeps one in the user's folder
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.ERROR,
        log_to_driver=False,  # actors' errors are raised here; their output stays in Ray's session folder
        _node_ip_address="127.0.0.1",
    )
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's aborts the process


def stop_ray() -> None:
    """Stops Ray and every process that this one started through it."""
    ray.shutdown()
