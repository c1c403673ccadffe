"""Waits for conditions, and for child processes by their titles, which Ray sets to the actor method that runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def wait_until(is_true: Callable[[], object], *, seconds: float = 120, every: float = 0.01) -> None:
    """Polls `is_true()` each `every` seconds until it holds.

    Raises:
        TimeoutError: it stayed false for `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"condition not met in {seconds} s")
        time.sleep(every)


def wait_for_process(title: str) -> list[psutil.Process]:
    """Returns the descendants of this process whose title begins with `title`, once there is one."""
    wait_until(lambda: find_processes(title))
    return find_processes(title)


def find_processes(title: str) -> list[psutil.Process]:
    """Returns the descendants of this process whose title begins with `title`."""
    return [p for p in psutil.Process().children(recursive=True) if _title(p).startswith(title)]


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
