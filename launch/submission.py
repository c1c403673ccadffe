"""Submits a command of `omr` to a cluster: checks it, keeps what explains it later, and starts its job."""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.scratch import scratch_folder
from launch.submit.checks import Check, check_all, check_with_slurm
from launch.submit.code import Code, find_code
from launch.submit.config import ClusterFile
from launch.submit.jobs import find_state
from launch.submit.local import environment_of_jobs, start_local
from launch.submit.login import Login
from launch.submit.lookup import find_cluster
from launch.submit.records import (
    JOB,
    JobRecord,
    begin_records,
    check_folder,
    launch_folder,
    read_record,
    write_record,
)
from launch.submit.script import write_local, write_task
from launch.submit.size import Size, Stage, find_size

if TYPE_CHECKING:
    from launch.executors import Submission


@dataclass(frozen=True, kw_only=True)
class Request:
    """A command of `omr`, and where it is to run."""

    stage: Stage
    recipe: str
    """The recipe's name, or another first word of the command."""
    words: tuple[str, ...]
    """What follows `omr`."""
    config: object
    run: str
    """Folder that the command writes."""
    on: str
    """Name or path of a cluster file."""
    nodes: int = 0
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request with all that its job needs."""

    request: Request
    path: Path  # of the cluster file
    cluster: ClusterFile
    size: Size
    code: Code
    records: Path  # on this machine
    base: str  # on the cluster, like the next two: where relative paths start
    records_there: str
    task: str

    @property
    def login(self) -> Login:
        return Login(ssh=self.cluster.ssh)

    @property
    def run(self) -> str:
        """Returns the run's folder, as it is found from the current one."""
        run = self.request.run
        is_here = self.cluster.ssh.host or self.base == os.getcwd()
        return run if is_here else str(Path(self.base) / run)

    def log(self, job: str) -> str:
        return f"{self.records_there}/logs/{job}.log"


def prepare(request: Request) -> Prepared:
    """Reads the cluster file, and finds size, code and folders; writes nothing.

    Raises:
        ValueError: the cluster file or the size is refused, or a job of the same run has not ended.
    """
    path, cluster = find_cluster(request.on)
    base = cluster.folder if cluster.ssh.host else str(Path(cluster.folder).absolute())
    folder = launch_folder(request.run, is_output=request.stage in ("data", "eval", "convert"))
    if cluster.ssh.host and folder.is_absolute():
        raise ValueError(
            f"{request.run} is a full path, but its records are kept here and the run on {cluster.ssh.host}; give a "
            f"relative one: it stands for a folder here, and for one in {base} there"
        )
    records = folder.absolute() if cluster.ssh.host else Path(base) / folder
    is_slurm = cluster.kind == "slurm"
    if request.nodes > 1 and not is_slurm:
        raise ValueError(
            f"--nodes {request.nodes}, but --on {request.on} is this machine alone; leave --nodes out"
        )
    size = (
        find_size(request.stage, request.config, cluster.slurm, nodes=request.nodes) if is_slurm else Size()
    )
    code, records_there = find_code(), f"{base}/{folder}" if cluster.ssh.host else str(records)
    if is_slurm:
        check_folder(records_there)
    threads = {"OMP_NUM_THREADS": "${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"} if size.cpus_per_task else {}
    task = write_task(
        request.words,
        folder=base,
        records=records_there,
        code="/nemo_run/code" if is_slurm and code.tree else "" if is_slurm else str(code.root),
        variables=threads if request.stage == "sft" else {},
    )
    return Prepared(
        request=request,
        path=path,
        cluster=cluster,
        size=size,
        code=code,
        records=records,
        base=base,
        records_there=records_there,
        task=task,
    )


def run_checks(job: Prepared) -> list[Check]:
    """Returns all checks that need neither a GPU nor a job."""
    request = job.request
    return check_all(
        request.config,
        request.recipe,
        cluster=job.cluster,
        size=job.size,
        login=job.login,
        code=job.code,
        base=job.base,
    )


def dry_run(job: Prepared) -> tuple[str, list[Check]]:
    """Makes everything but the job and the archive of its code, in a folder for temporary files.

    Returns:
        What would be submitted, in full; and what Slurm says of it.
    """
    where = job.cluster.ssh.host or "this machine"
    title = f"# omr {shlex.join(job.request.words)}\n# on {job.path} ({job.cluster.kind}, from {where})\n"
    if job.cluster.kind == "local":
        script = write_local(job.cluster, job.task, str(job.records))
        return f"{title}# records: {job.records}\n\n{script}", []
    with scratch_folder() as folder:
        made = _submit(job, base=folder / "dry", stamp="dry", is_dry=True)
    parts = (
        f"{title}# {job.size.describe()}",
        f"# records: {job.records_there}; log: {job.log('JOB')}",
        f"\n# ---- sbatch --requeue --parsable ----\n\n{made.script}",
        f"\n# ---- what every task runs ----\n\n{made.task}",
    )
    return "\n".join(parts), [check_with_slurm(job.login, made.script)]


def start(job: Prepared) -> JobRecord:
    """Starts the job, and returns its record.

    Raises:
        ValueError: another job of this run has not ended.
        OSError: Slurm refuses it, or is not reached.
    """
    _refuse_second_job(job)
    record = JobRecord(
        kind=job.cluster.kind,
        job="",
        command=job.request.words,
        folder=job.base,
        log="",
        submitted=datetime.now(UTC).isoformat(timespec="seconds"),
        cluster=str(job.path),
        machine=socket.gethostname(),
        host=job.cluster.ssh.host,
        user=job.cluster.ssh.user,
        port=job.cluster.ssh.port,
        identity=job.cluster.ssh.identity,
    )
    with begin_records(job.records, job.code, job.path):
        number, born = _start_local(job) if job.cluster.kind == "local" else (_start_on_slurm(job), 0)
        record = replace(record, job=number, born=born, log=job.log(number))
        write_record(job.records, record)
    return record


def _start_local(job: Prepared) -> tuple[str, int]:
    pid, born = start_local(write_local(job.cluster, job.task, str(job.records)), job.records)
    return str(pid), born


def _start_on_slurm(job: Prepared) -> str:
    if job.cluster.ssh.host:
        job.login.run("mkdir", "-p", f"{job.records_there}/logs")
    submitted = _submit(job, base=job.records, stamp=str(time.time_ns()), is_dry=False)
    (job.records / "script.sh").write_text(submitted.script)
    return submitted.job


def _submit(job: Prepared, *, base: Path, stamp: str, is_dry: bool) -> Submission:
    with _environment(NEMORUN_HOME=str(base)):  # read when NeMo-Run is imported: its files are the run's, too
        from launch.executors import build_slurm_executor, submit

        # a dry run packs no code: that takes most of its time, and the scripts are the same
        packed = None if is_dry else job.code
        executor = build_slurm_executor(job.cluster, job.size, records=job.records_there, code=packed)
        return submit(
            executor,
            job.task,
            name=job.request.stage,
            stamp=stamp,
            base=base,
            code=job.code,
            dry_run=is_dry,
        )


def _refuse_second_job(job: Prepared) -> None:
    if not (job.records / JOB).is_file():
        return
    record = read_record(job.records)
    try:
        state = find_state(job.records, record)
    except OSError:  # long forgotten
        return
    if not state.ended:
        raise ValueError(
            f"job {record.job} of {job.run} is {state.describe()}: two jobs must not write one folder; wait for it, "
            f"or `omr launch cancel {job.run}`"
        )


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Gives this process, while the block runs, the environment of a job, and more variables."""
    before = dict(os.environ)
    jobs = environment_of_jobs() | variables
    os.environ.clear()
    os.environ.update(jobs)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
