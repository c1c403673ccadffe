"""A folder of results belongs to one process at a time: two would write over each other's steps, or responses."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from data_pipeline.files import parse_json, to_json

LOCK = "lock"
WAIT_SECONDS = 5.0
"""In which a process that was killed lets go of its files."""


@contextmanager
def hold_folder(folder: Path, *, held: str, option: str) -> Iterator[None]:
    """Holds a folder for this process, until the block ends or the process does.

    The kernel's lock on FOLDER/lock counts, not the file, which says who holds it. Where a file system has no locks,
    nothing is held.

    Args:
        held: what another process does that holds it, such as "run=x is being trained by".
        option: that names another folder.

    Raises:
        ValueError: another process holds it; says which, and how to go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+b") as file:
        if not _lock(file):
            raise ValueError(f"{held} {_describe_holder(file, option)}")
        file.truncate(0)
        file.write(to_json({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        file.flush()
        yield


def hold_run(run: Path) -> AbstractContextManager[None]:
    """Holds a run, as hold_folder()."""
    return hold_folder(run, held=f"run={run} is being trained by", option="--run")


def _lock(file: BinaryIO) -> bool:
    """Returns False where another process holds the lock."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        except OSError:  # the file system has no locks
            return True
        else:
            return True


def _describe_holder(file: BinaryIO, option: str) -> str:
    file.seek(0)
    try:
        holder = parse_json(file.read())
        host, pid = str(holder["host"]), int(holder["pid"])
    except (ValueError, KeyError, TypeError):  # it is being written
        return f"another process; end it first, or choose another folder with {option}"
    who = f"process {pid} on host {host}"
    if host == socket.gethostname() and _is_stopped(pid):
        return f"{who}, which is stopped; kill -CONT {pid} continues it, kill -KILL {pid} ends it: then start again"
    return f"{who}; end it first, or choose another folder with {option}"


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False
