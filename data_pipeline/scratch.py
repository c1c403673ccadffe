"""One folder for the temporary files of a command and of all processes that it starts.

It is their TMPDIR, so that what they leave goes with it: when the command ends or, after a kill, when the next one
starts. So do processes that are left then, and files in /dev/shm: semaphores, which begin with the folder's name, and
vLLM's, which begin with that of a file in it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.left_over import end_processes

PREFIX = "omr_"
SHARED_MEMORY = Path("/dev/shm")
LONGEST_BASE = 26
"""Length of a TMPDIR that leaves room for this folder and Ray's sockets in it: their paths are limited to 107 bytes."""

_owned: set[Path] = set()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Gives this process a TMPDIR of its own, of mode 0700; removes those whose owners were killed.

    Processes that such an owner left are killed. The folder lies under the TMPDIR of before or, where that is too long
    for Ray's sockets, under /tmp. Inside another block of this process it is that block's folder.
    """
    if (outer := os.environ.get("TMPDIR")) and Path(outer) in _owned:
        yield Path(outer)
        return
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > LONGEST_BASE:
        base = Path("/tmp")
    for left in base.glob(f"{PREFIX}*"):
        if (lock := _lock(left)) is not None:
            end_processes(left)
            _remove_shared(f"sem.{left.name}-*")
            _remove(left)
            os.close(lock)
    folder, lock = _create(base)
    values = {
        "TMPDIR": str(folder),
        # joblib, which scikit-learn imports, would give all semaphores names of its own
        "JOBLIB_MULTIPROCESSING": "0",
        # where the nodes of a cluster on this machine are found
        "RAY_TMPDIR": os.environ.get("RAY_TMPDIR") or (str(base) if os.environ.get("RAY_ADDRESS") else None),
    }
    before = {name: os.environ.get(name) for name in values}
    settings = multiprocessing.current_process()._config  # pyright: ignore[reportAttributeAccessIssue]
    settings_before = dict(settings)
    _set_environment(values)
    settings |= {"semprefix": f"/{folder.name}", "tempdir": str(folder)}  # of this process's children, too
    _owned.add(folder)
    try:
        yield folder
    finally:
        _owned.remove(folder)
        settings.clear()
        settings |= settings_before
        _set_environment(before)
        end_processes(folder)
        _remove(folder)
        os.close(lock)


def _remove(folder: Path) -> None:
    """Removes a folder, and what killed engines have left in /dev/shm."""
    for path in folder.glob("vllm_dist_*"):
        _remove_shared(f"{path.name}-*")
    shutil.rmtree(folder, ignore_errors=True)


def _remove_shared(pattern: str) -> None:
    for path in SHARED_MEMORY.glob(pattern):
        path.unlink(missing_ok=True)


def _create(base: Path) -> tuple[Path, int]:
    """Returns a new folder and its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        lock = _lock(folder)
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:  # another process that starts now took it for one that was left
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Returns a lock that this process holds until it ends; None where another has it, or it is not our folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None  # Python keeps what it found in TMPDIR first
