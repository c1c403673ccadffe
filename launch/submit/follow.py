"""Shows the log of a job while it runs, and how it ended."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from launch.submit.jobs import JobState, find_state
from launch.submit.login import Login, login_of
from launch.submit.records import JobRecord

LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 5.0
"""Between looks at the log and the state."""
LAST_LINES = 30
FAILED_TASK = re.compile(r"^srun: error: \S+: tasks? [\d,-]+: Exited with exit code (\d+)$", re.M)
NFS_SECONDS = 2.0
"""After a job has ended, its last lines may take so long to show on this machine."""


def print_log(record: JobRecord, *, lines: int = 0) -> None:
    """Prints the log of a job so far, or its last lines."""
    text = login_of(record).read(record.log).decode(errors="replace")
    shown = text.splitlines()[-lines:] if lines else text.splitlines()
    print("\n".join(shown) if shown else f"{record.log} is not there yet, or empty")


def read_last_lines(record: JobRecord, lines: int = LAST_LINES) -> str:
    """Returns the end of a job's log."""
    text = login_of(record).read(record.log).decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])


def find_exit_code(state: JobState, record: JobRecord) -> int:
    """Returns the exit code of the task that failed first; 0 for a job that succeeded.

    Slurm ends the other tasks then, and gives the job the highest code of all: that of a task which was ended.
    """
    if state.name == "COMPLETED":
        return 0
    found = FAILED_TASK.findall(read_last_lines(record)) if state.exit_code > 128 else []
    return int(found[0]) if found else state.exit_code or 1


def follow(folder: Path, record: JobRecord) -> JobState:
    """Prints the log as it grows until the job has ended; returns the last state. Ctrl-C leaves the job running.

    Raises:
        OSError: the cluster does not answer.
        KeyboardInterrupt: the user stopped watching.
    """
    login, offset, shown = login_of(record), 0, ""
    pause = REMOTE_SECONDS if login.ssh.host else LOCAL_SECONDS
    while True:
        state = find_state(folder, record)
        if not state.ended and state.describe() != shown:
            shown = state.describe()
            print(f"omr launch: job {record.job}: {shown}", file=sys.stderr, flush=True)
        offset = _print_more(login, record, offset)
        if state.ended:
            break
        time.sleep(pause)
    if record.kind == "slurm":
        time.sleep(NFS_SECONDS)
        _print_more(login, record, offset)
    return state


def _print_more(login: Login, record: JobRecord, offset: int) -> int:
    found = login.read(record.log, offset)
    sys.stdout.write(found.decode(errors="replace"))
    sys.stdout.flush()
    return offset + len(found)
