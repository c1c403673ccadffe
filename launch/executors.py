"""Executors of NeMo-Run for the clusters of cluster files. The only module that imports nemo_run, which takes seconds.

cluster = find_cluster("mine")[1]
executor = build_executor(cluster, Size(nodes=4, tasks_per_node=8, gpus_per_node=8), records="runs/mine/launch")
"""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from launch.submit.code import Code
from launch.submit.config import ClusterFile
from launch.submit.script import write_batch_setup
from launch.submit.size import Size

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # leptonai imports what starlette has deprecated
    import nemo_run as run
    from invoke.exceptions import UnexpectedExit
    from nemo_run.core.execution.slurm import SlurmJobDetails

TITLE = "omr"


@dataclass(kw_only=True)
class LogDetails(SlurmJobDetails):
    """Names one log for the batch script and all tasks of a job, in `folder`, by the job's number."""

    @property
    def stdout(self) -> Path:
        return Path(self.folder or "") / "%j.log"

    @property
    def srun_stdout(self) -> Path:
        return self.stdout

    @property
    def ls_term(self) -> str:
        return f"{self.folder}/%j.log"


def build_executor(
    cluster: ClusterFile, size: Size, *, records: str, code: Code | None = None
) -> run.SlurmExecutor | run.LocalExecutor:
    """Returns the executor of a cluster, for jobs of a size; on this machine, jobs start their ranks themselves.

    Args:
        records: full path of the folder on the cluster that gets logs/ and NeMo-Run's experiments/. Without ssh, an
            experiment's base_dir must be this folder.
        code: the checkout to pack; jobs find it at /nemo_run/code. None packs nothing.
    """
    if cluster.kind == "local":
        return run.LocalExecutor(env_vars=dict(cluster.environment), packager=run.Packager())
    return build_slurm_executor(cluster, size, records=records, code=code)


def build_slurm_executor(
    cluster: ClusterFile, size: Size, *, records: str, code: Code | None = None
) -> run.SlurmExecutor:
    """Returns the executor of a Slurm cluster; see build_executor."""
    slurm, is_elsewhere = cluster.slurm, bool(cluster.ssh.host or cluster.container.image)
    executor = run.SlurmExecutor(
        account=slurm.account or None,  # pyright: ignore[reportArgumentType]: None leaves it to the cluster
        partition=size.partition or None,
        qos=slurm.qos or None,
        time=slurm.time,
        nodes=size.nodes,
        ntasks_per_node=size.tasks_per_node,
        gpus_per_node=size.gpus_per_node or None,
        cpus_per_task=size.cpus_per_task or None,
        mem=slurm.mem or None,
        signal=f"USR1@{slurm.signal_seconds}",  # to the tasks alone: srun runs in the script's foreground
        job_name_prefix=f"{TITLE}.",
        job_details=LogDetails(folder=f"{records}/logs"),
        container_image=cluster.container.image or None,
        container_mounts=list(_mounts(cluster, records)) if cluster.container.image else [],
        additional_parameters={name: value for name, value in slurm.parameters.items() if value is not False},
        # no limit for tasks that end after the first: one of them writes the last checkpoint
        srun_args=[
            "--wait=0",
            "--open-mode=append",
            *(["--label"] if size.nodes * size.tasks_per_node > 1 else []),
        ],
        tunnel=_build_tunnel(cluster, records),
        packager=_build_packager(code),
        # NeMo-Run exports names in capitals and values without quotes: the environment is in these lines
        setup_lines=write_batch_setup(cluster, is_elsewhere=is_elsewhere, cpus_per_task=size.cpus_per_task),
        poll_estimated_start_time=False,
    )
    executor.retries = 0  # NeMo-Run requeues after any failure; these lines, only where the run continues
    return executor


def _mounts(cluster: ClusterFile, records: str) -> list[str]:
    needed = [f"{folder}:{folder}" for folder in (cluster.folder or os.getcwd(), records)]
    return [*cluster.container.mounts, *(mount for mount in needed if mount not in cluster.container.mounts)]


def _build_tunnel(cluster: ClusterFile, records: str) -> run.LocalTunnel | run.SSHTunnel:
    folder = f"{records}/experiments"  # a local tunnel copies nothing: it must be where an experiment writes
    if not cluster.ssh.host:
        return run.LocalTunnel(job_dir=folder)
    ssh = cluster.ssh
    identity = str(Path(ssh.identity).expanduser()) if ssh.identity else None
    user = ssh.user or getpass.getuser()
    return run.SSHTunnel(host=ssh.host, user=user, port=ssh.port, identity=identity, job_dir=folder)


def _build_packager(code: Code | None) -> run.Packager:
    if code is None or not code.tree:
        return run.Packager()
    return run.GitArchivePackager(basepath=str(code.root), ref=code.tree, include_submodules=False)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job that was submitted, or would be."""

    job: str
    """Its number; empty after a dry run."""
    script: str
    """Of the batch job, for `sbatch --requeue --parsable`."""
    task: str
    """What every task runs."""


def submit(
    executor: run.SlurmExecutor, task: str, *, name: str, stamp: str, base: Path, code: Code, dry_run: bool
) -> Submission:
    """Submits a script that every task runs, through NeMo-Run.

    Args:
        stamp: what tells this job from earlier ones of the run.
        base: folder on this machine for NeMo-Run's experiments/.
        dry_run: writes the scripts, and submits nothing.

    Raises:
        OSError: sbatch refused, or the login node was not reached.
    """
    experiment = run.Experiment(
        TITLE,
        id=f"{TITLE}_{stamp}",
        base_dir=str(base),
        log_level="ERROR",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
        serialize_metadata_for_scripts=False,
    )
    said = io.StringIO()
    # NeMo-Run looks for git's folder from the current one on
    with contextlib.chdir(code.root), contextlib.redirect_stdout(said), experiment:
        experiment.add(run.Script(inline=task), executor=executor, name=name)
        try:
            if dry_run:
                experiment.dryrun(log=False, delete_exp_dir=False)
            else:
                experiment.run(detach=True)
        except UnexpectedExit as failure:
            reason = failure.result.stderr.strip() or failure.result.stdout.strip()
            raise OSError(f"{failure.result.command.split()[0]} failed: {reason}") from None
        job = experiment.jobs[0]
    folder = base / "experiments" / TITLE / f"{TITLE}_{stamp}"
    script = (folder / f"{name}_sbatch.sh").read_text()
    written = (folder / name / "scripts" / f"{name}.sh").read_text()
    number = job.handle.partition("://")[2].split("/")[1] if job.handle else ""
    if not dry_run and not number:
        raise OSError(f"NeMo-Run submitted nothing: {said.getvalue().strip()[-500:]}")
    return Submission(job=number, script=script, task=written)
