"""Runs a command, and ends everything that came of it once the process that started this one has ended or says so.

    python -m launch.ranks.guard COMMAND...      with a pipe as standard input, whose other end the starter keeps

Ray's processes leave their group, and some outlive it when it is killed. They all descend from this process, which the
kernel makes the parent of those that lose theirs (PR_SET_CHILD_SUBREAPER). Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 10.0
"""After SIGTERM, until SIGKILL."""
LOOK_SECONDS = 0.1


def main(words: list[str]) -> int:
    """Returns the exit code of the command; -N where signal N ended it."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("the kernel refuses PR_SET_CHILD_SUBREAPER")
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
    ):  # the starter decides; by default in the command
        signal.signal(number, lambda number, frame: None)
    starter = os.getppid()
    no_input = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    command = os.posix_spawnp(words[0], words, os.environ, file_actions=no_input)
    code: int | None = None
    # readable: the pipe was closed; a fork of the starter may still hold it open when that is gone
    while (
        code is None and not select.select([sys.stdin], [], [], LOOK_SECONDS)[0] and os.getppid() == starter
    ):
        code = _collect(command)
    if code is None:
        os.kill(command, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while code is None and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            code = _collect(command)
    _kill_all()
    return -signal.SIGKILL if code is None else code


def _collect(command: int) -> int | None:
    """Takes note of children that have ended; returns the command's exit code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == command:
            code = os.waitstatus_to_exitcode(status)


def _kill_all() -> None:
    """Ends the children that are left; theirs become ours, and end in the next round."""
    while True:
        for pid in _list_children():
            os.kill(pid, signal.SIGKILL)  # a child that has ended keeps its number until it is waited for
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _list_children() -> list[int]:
    children: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == os.getpid():
            children.append(int(entry.name))
    return children


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
