"""Writes the bash that a job consists of: what it begins with, what each task runs, and how it ends."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.submit.config import ClusterFile
from launch.submit.records import ENDED_WITH
from megatron_omr.train.stop import RESUMABLE

LIST_PACKAGES = """import re
from importlib.metadata import distributions
names = {re.sub("[-_.]+", "-", each.name).lower(): each.version for each in distributions()}
print(*(f"{name}=={version}" for name, version in sorted(names.items())), sep="\\n")"""
"""Python that prints the packages of an environment, as a lock does."""

REQUEUE = """
# 75: the run is saved and continues. It continues, too, where a node is lost, which ends the tasks on the others first.
end_job() {{
    local code=$?
    if [ "$code" -eq 0 ]; then return; fi
    if [ "$code" -ne {resumable} ] && timeout 60 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 true
    then exit "$code"; fi
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
        echo "omr launch: job $SLURM_JOB_ID ended with code $code and goes back to the queue"
        if scontrol requeue "$SLURM_JOB_ID"; then sleep 600; fi
    fi
    exit "$code"
}}
trap end_job EXIT
"""


def write_setup(cluster: ClusterFile, *, is_elsewhere: bool) -> str:
    """Returns the lines that a job begins with, on its first node; one that fails ends the job.

    Args:
        is_elsewhere: tasks have another python than this process: that of a container, or of another file system.
    """
    lines = ["set -e"]
    if not is_elsewhere:
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    lines += cluster.setup
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    return "\n".join([*lines, "set +e"])


def write_batch_setup(cluster: ClusterFile, *, is_elsewhere: bool, cpus_per_task: int) -> str:
    """Returns the same for a batch script of NeMo-Run, and how the job ends."""
    lines = ["set +vx", write_setup(cluster, is_elsewhere=is_elsewhere)]
    if cpus_per_task:
        lines.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it from sbatch")
    return "\n".join(lines) + REQUEUE.format(resumable=RESUMABLE, requeues=cluster.slurm.requeues)


def write_task(
    command: Sequence[str],
    *,
    folder: str,
    records: str,
    code: str,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Returns the bash that every task runs: `omr` with the words of `command`.

    Args:
        folder: where relative paths start.
        records: folder of the run's job, which gets environment.txt.
        code: folder of the packed code; empty: python finds the package by itself.
        variables: environment that only tasks have; values may refer to other variables.
    """
    lines = [f"cd {shlex.quote(folder)} || exit 1"]
    if code:
        lines.append(f'export PYTHONPATH={shlex.quote(code)}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines += [f'export {name}="{value}"' for name, value in (variables or {}).items()]
    lines += [
        'if [ "${SLURM_PROCID:-0}" = 0 ]; then',
        f"    python -P -c {shlex.quote(LIST_PACKAGES)} > {shlex.quote(f'{records}/environment.txt')}",
        "fi",
        # -P: not the code that the folder may hold
        f"exec python -P -m launch.cli {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def write_local(cluster: ClusterFile, task: str, records: str) -> str:
    """Returns the script of a job on this machine, which leaves its exit code in a file."""
    return "\n".join(
        (
            "#!/usr/bin/env bash",
            "trap : TERM INT # bash waits for the run, which ends by itself, and notes its code",
            "(",
            write_setup(cluster, is_elsewhere=False),
            task + ")",
            "code=$?",
            f"echo $code > {shlex.quote(f'{records}/{ENDED_WITH}')}",
            "exit $code\n",
        )
    )
