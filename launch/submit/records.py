"""RUN/launch: what is known of the job of a run, for whoever asks later, in whatever process."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.files import read_json, write_json
from launch.submit.code import Code

JOB, ENDED_WITH = "job.json", "exit_code"
KEPT = ("revision", "diff.patch", "environment.txt", "cluster.toml", JOB, ENDED_WITH)
"""Files of a job that a later one of the same run would overwrite; scripts and logs have the job's number."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """The newest job of a run."""

    kind: Literal["local", "slurm"]
    job: str
    """Number of the job, or of the process."""
    command: tuple[str, ...]
    """The words after `omr`."""
    folder: str
    """Where relative paths start, on the cluster."""
    log: str
    """Log of all tasks, on the cluster; a job that starts anew appends to it."""
    submitted: str
    """Time in UTC, ISO 8601."""
    born: int = 0
    """When a local process started, in ticks of the kernel: numbers of processes come again."""
    machine: str = ""
    """Where a local process runs: another machine that sees the folder cannot tell whether it does."""
    cluster: str = ""
    host: str = ""
    user: str = ""
    port: int = 22
    identity: str = ""


def launch_folder(run: str | Path, *, is_output: bool = False) -> Path:
    """Returns the folder of a run's job: RUN/launch, or OUT.launch beside an output that a command makes whole."""
    run = Path(run)
    return run.with_name(f"{run.name}.launch") if is_output else run / "launch"


def check_folder(folder: str) -> None:
    """Raises ValueError for a launch folder that cannot be that of a Slurm job."""
    if wrong := re.search(r"[^\w./@+=-]", folder):
        raise ValueError(
            f"{folder!r} has {wrong[0]!r}: NeMo-Run and Slurm take paths without quotes; letters, digits and ./@+=_- "
            "may stand in the folder of a run, and in the one that it is submitted from"
        )


def find_folder(run: str) -> Path:
    """Returns the launch folder of a run or an output.

    Raises:
        ValueError: it was not submitted from here.
    """
    for is_output in (False, True):
        folder = launch_folder(run, is_output=is_output)
        if (folder / JOB).is_file():
            return folder
    raise ValueError(
        f"{run} has no launch/{JOB}: no job of it was submitted here; give the folder of the run"
    )


def read_record(folder: Path) -> JobRecord:
    """Returns the record of the newest job."""
    values = read_json(folder / JOB)
    return JobRecord(**{**values, "command": tuple(values["command"])})


def write_record(folder: Path, record: JobRecord) -> None:
    write_json(folder / JOB, asdict(record))


@contextmanager
def begin_records(folder: Path, code: Code, cluster: Path) -> Iterator[None]:
    """Writes what is known before a job exists; the block starts it.

    What an earlier job of the run left is kept in a folder of its own, and put back where the block raises.
    """
    earlier = folder / "earlier" / read_record(folder).job if (folder / JOB).is_file() else None
    if earlier:
        _move_records(folder, earlier)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "revision").write_text(f"{code.revision or 'no git checkout'}\n")
    (folder / "diff.patch").write_bytes(code.diff)
    shutil.copyfile(cluster, folder / "cluster.toml")
    try:
        yield
    except BaseException:
        if earlier:
            _move_records(earlier, folder)
        raise


def _move_records(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (source / name).exists():
            (source / name).replace(target / name)
