"""The state of a job, and its end: of Slurm's, and of a process of this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.submit.login import Login, login_of
from launch.submit.records import ENDED_WITH, JOB, JobRecord
from megatron_omr.train.stop import RESUMABLE

WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESIZING", "SPECIAL_EXIT")
ACTIVE = (*WAITING, "RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT")
GRACE_SECONDS = 30
"""After SIGTERM, a local process gets this long to end."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """The state of a job, as Slurm or this machine reports it."""

    name: str
    """Slurm's word: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ..."""
    exit_code: int = 0
    """That of the worst task, once it ended; 128 + N for signal N."""
    detail: str = ""
    """Why it waits, where it runs, how often it started anew."""

    @property
    def ended(self) -> bool:
        return self.name not in ACTIVE

    def describe(self) -> str:
        return self.name + (f" ({self.detail})" if self.detail else "")


def find_state(folder: Path, record: JobRecord) -> JobState:
    """Returns the state of a run's newest job.

    Raises:
        OSError: Slurm does not answer, or no longer knows the job.
        ValueError: it is a process of another machine.
    """
    if record.kind == "local":
        return _find_local(folder, record)
    return ask_slurm(login_of(record), record.job)


def ask_slurm(login: Login, job: str) -> JobState:
    """Returns the state of a job of Slurm: the controller's word, and that of accounting once it has forgotten it."""
    shown = login.run("scontrol", "--oneliner", "show", "job", job)
    if shown.returncode == 0 and (values := dict(re.findall(r"(\S+?)=(\S*)", shown.stdout))):
        return _read_controller(values)
    listed = login.run("sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode,NodeList")
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    if not lines:
        said = (shown.stderr or listed.stderr).strip().splitlines()
        raise OSError(f"Slurm does not know job {job}" + (f": {said[-1]}" if said else ""))
    state, code, nodes = lines[-1].split("|")
    return JobState(name=state.split()[0], exit_code=_read_code(code), detail=f"on {nodes}")


def _read_controller(values: dict[str, str]) -> JobState:
    name = values["JobState"]
    parts = [f"on {values['NodeList']}"] if values.get("NodeList", "(null)") not in ("", "(null)") else []
    if name in WAITING and values.get("Reason", "None") != "None":
        parts.append(f"waits: {values['Reason']}")
    if int(values.get("Restarts", "0")):
        parts.append(f"started anew {values['Restarts']} times")
    return JobState(name=name, exit_code=_read_code(values.get("ExitCode", "0:0")), detail=", ".join(parts))


def _read_code(text: str) -> int:
    """Returns one number of Slurm's CODE:SIGNAL."""
    code, _, number = text.partition(":")
    return int(code) or (128 + int(number) if int(number or 0) else 0)


def cancel_job(record: JobRecord) -> None:
    """Ends a job; its checkpoints stay.

    Raises:
        OSError: Slurm refuses.
    """
    if record.kind == "local":
        _end_process(record)
        return
    done = login_of(record).run("scancel", record.job)
    if done.returncode:
        raise OSError(f"scancel {record.job}: {done.stderr.strip()}")


def read_birth(pid: int) -> int:
    """Returns when a process started, in ticks since the machine did; 0 if there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def reap_children(pids: Sequence[int]) -> None:
    """Takes note of children that have ended, so that they do not stay as remains."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # another process started it
            continue


def _find_local(folder: Path, record: JobRecord) -> JobState:
    reap_children([int(record.job)])
    alive = read_birth(int(record.job)) == record.born
    code = folder / ENDED_WITH
    if code.is_file() and (text := code.read_text().strip()):  # empty for a moment
        number = int(text)
        names = {0: "COMPLETED", RESUMABLE: "STOPPED_RESUMABLE", 128 + signal.SIGTERM: "CANCELLED"}
        name = names.get(number, "FAILED")
        return JobState(name=name, exit_code=number)
    if record.machine != socket.gethostname():
        raise ValueError(
            f"process {record.job} of this run was started on {record.machine}, which alone can tell whether it still "
            f"runs; ask there, or delete {folder / JOB} if that machine is gone"
        )
    if alive:
        return JobState(name="RUNNING", detail=f"process {record.job}")
    return JobState(name="CANCELLED", exit_code=128 + signal.SIGTERM, detail="it was ended from outside")


def _end_process(record: JobRecord) -> None:
    """Ends the session that a local job is, with SIGKILL where SIGTERM does not do."""
    pid = int(record.job)
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5)):
        if read_birth(pid) != record.born:
            return
        os.killpg(pid, number)
        until = time.monotonic() + seconds
        while read_birth(pid) == record.born and time.monotonic() < until:
            reap_children([pid])
            time.sleep(0.1)
