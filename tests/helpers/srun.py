"""Starts a command on emulated hosts as `srun --ntasks-per-node=1` does: one task a host, with Slurm's variables."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.helpers.hosts import Host
from tests.helpers.processes import find_processes


@dataclass
class Tasks:
    """The tasks of a step, in the order of their hosts."""

    processes: list[subprocess.Popen]
    logs: list[Path]

    def wait(self, *numbers: int, seconds: float) -> list[int]:
        """Returns the exit codes of these tasks, or of all; raises AssertionError with their output if they run on."""
        deadline = time.monotonic() + seconds
        chosen = numbers or range(len(self.processes))
        try:
            return [self.processes[n].wait(max(0.1, deadline - time.monotonic())) for n in chosen]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s: {self.output()}") from None

    def output(self) -> str:
        """Returns what all tasks printed."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in self.logs)


@contextmanager
def srun(
    hosts: Sequence[Host],
    words: Sequence[str],
    folder: Path,
    *,
    env: Sequence[Mapping[str, str]] | None = None,
    job: int = 7,
) -> Iterator[Tasks]:
    """Runs `words` on these hosts, each with its own `env`; output goes to `folder`. The rest ends with its host."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"{host.name}.log" for host in hosts]
    processes = [
        host.popen(words, env={**slurm_variables(hosts, node, job), **(env[node] if env else {})}, log=log)
        for node, (host, log) in enumerate(zip(hosts, logs, strict=True))
    ]
    try:
        yield Tasks(processes, logs)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def slurm_variables(hosts: Sequence[Host], node: int, job: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(node),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": str(len(hosts)),
        "SLURM_STEP_NUM_NODES": str(len(hosts)),
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{len(hosts)})",
        "SLURM_STEP_NODELIST": ",".join(host.name for host in hosts),
        "PYTHONPATH": os.getcwd(),
    }


def find_on(host: Host, title: str) -> list[psutil.Process]:
    """Returns the processes on the host whose title begins with `title`, of those that this one started."""
    own = os.readlink(f"/proc/{host._pid}/ns/pid")
    return [process for process in find_processes(title) if _namespace(process) == own]


def _namespace(process: psutil.Process) -> str:
    try:
        return os.readlink(f"/proc/{process.pid}/ns/pid")
    except OSError:  # it has ended
        return ""


def list_processes(host: Host) -> list[str]:
    """Returns the command lines of the host's processes, without those that ended: process 1 there collects none."""
    rows = host.run("ps", "ax", "-o", "stat=,args=").splitlines()
    return [row for row in rows if not row.startswith("Z")]
