"""Starts a job on this machine, in a session of its own that outlives the process that started it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from launch.submit.jobs import read_birth

OWN = ("TMPDIR", "JOBLIB_MULTIPROCESSING", "RAY_TMPDIR")
"""Variables of this command alone, see data_pipeline/scratch.py: its folder of temporary files goes when it ends."""


def environment_of_jobs() -> dict[str, str]:
    """Returns this process's environment without what is its own."""
    return {name: value for name, value in os.environ.items() if name not in OWN}


def start_local(script: str, records: Path) -> tuple[int, int]:
    """Runs a script with its output in logs/PID.log; returns the number of its process, and when it started."""
    path = records / "script.sh"
    path.write_text(script)
    path.chmod(0o755)
    log = records / "logs" / f"{time.time_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment_of_jobs(),
            start_new_session=True,
        )
    log.rename(log.with_name(f"{process.pid}.log"))
    return process.pid, read_birth(process.pid)
