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
LAST_LINES, CAUSE_LINES = 30, 400
"""Of a log: those that are shown, and those that are searched for the task that failed first."""
PATIENCE_SECONDS = 600.0
"""A controller that starts anew, or a network that is gone for a moment, does not end a watch."""
FAILED_TASK = re.compile(r"^srun: error: \S+: tasks? [\d,-]+: Exited with exit code (\d+)$", re.M)
NFS_SECONDS = 2.0
"""After a job has ended, its last lines may take so long to show on this machine."""


def print_log(record: JobRecord, *, lines: int = 0) -> None:
    """Prints the log of a job so far, or its last lines."""
    if lines:
        text = read_last_lines(record, lines)
    else:
        text = login_of(record).read(record.log).decode(errors="replace")
    print(text.rstrip("\n") if text else f"{record.log} is not there yet, or empty")


def read_last_lines(record: JobRecord, lines: int = LAST_LINES) -> str:
    """Returns the end of a job's log."""
    return login_of(record).read_last_lines(record.log, lines)


def find_exit_code(state: JobState, record: JobRecord) -> int:
    """Returns the exit code of the task that failed first; 0 for a job that succeeded.

    Slurm ends the other tasks then, and gives the job the highest code of all: that of a task which was ended.
    """
    if state.name == "COMPLETED":
        return 0
    found = FAILED_TASK.findall(read_last_lines(record, CAUSE_LINES)) if state.exit_code > 128 else []
    return int(found[0]) if found else state.exit_code or 1


def follow(folder: Path, record: JobRecord) -> JobState:
    """Prints the log as it grows until the job has ended; returns the last state. Ctrl-C leaves the job running.

    Raises:
        OSError: the cluster has not answered for PATIENCE_SECONDS.
        KeyboardInterrupt: the user stopped watching.
    """
    login, offset, shown, answered = login_of(record), 0, "", time.monotonic()
    pause = REMOTE_SECONDS if login.ssh.host else LOCAL_SECONDS
    while True:
        try:
            state = find_state(folder, record)
            if not state.ended and state.describe() != shown:
                shown = state.describe()
                print(f"omr launch: job {record.job}: {shown}", file=sys.stderr, flush=True)
            if state.ended and record.kind == "slurm":
                time.sleep(NFS_SECONDS)
            offset = _print_more(login, record, offset)
            if state.ended:
                return state
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered > PATIENCE_SECONDS:
                raise
        time.sleep(pause)


def _print_more(login: Login, record: JobRecord, offset: int) -> int:
    found = login.read(record.log, offset)
    sys.stdout.write(found.decode(errors="replace"))
    sys.stdout.flush()
    return offset + len(found)
