"""Finds and ends the processes that belong to a folder of temporary files whose owner has ended.

Such a process has the folder as its TMPDIR or, where it has written its title over its environment, as Ray's agents do,
writes to a file in the folder. Only processes of the same user can be seen so.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

END_SECONDS = 10.0
"""Most time that killed processes take to end: they may be in the kernel."""
_TRACKER = b"resource_tracker"  # Python's, which removes what is left in /dev/shm once the others have ended


def end_processes(folder: Path) -> list[int]:
    """Kills the processes of a folder, and those that they start meanwhile; returns their numbers once they are gone.

    This process is left alone. So are Python's resource trackers, which end themselves.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + END_SECONDS
    while (found := find_processes(folder)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
        time.sleep(0.02)
    return sorted(killed)


def find_processes(folder: Path) -> list[int]:
    """Returns the numbers of the processes of a folder, without this one and those that have ended."""
    others = (entry for entry in Path("/proc").glob("[0-9]*") if int(entry.name) != os.getpid())
    return [int(entry.name) for entry in others if _belongs(entry, folder)]


def _belongs(process: Path, folder: Path) -> bool:
    try:
        if _TRACKER in (process / "cmdline").read_bytes():
            return False
        environment = (process / "environ").read_bytes().split(b"\0")
        places = [value.removeprefix(b"TMPDIR=") for value in environment if value.startswith(b"TMPDIR=")]
        return any(Path(os.fsdecode(place)).is_relative_to(folder) for place in places) or any(
            _writes_in(folder, descriptor) for descriptor in (process / "fd").iterdir()
        )
    except OSError:  # it has ended, or is another user's
        return False


def _writes_in(folder: Path, descriptor: Path) -> bool:
    """Returns True if a descriptor, /proc/PID/fd/N, is of a file in the folder that was opened for writing."""
    try:
        if not descriptor.readlink().is_relative_to(folder):
            return False
        info = (descriptor.parents[1] / "fdinfo" / descriptor.name).read_text()
    except OSError:  # it was closed meanwhile; others may be open
        return False
    flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags:"))
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
