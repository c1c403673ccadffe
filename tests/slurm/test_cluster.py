"""The tests' own Slurm does what clusters do: tasks on two nodes with their own GPUs, and accounting."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.processes import wait_until
from tests.helpers.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.heavy


def test_tasks_run_on_two_nodes_and_are_accounted(slurm: SlurmCluster, tmp_path: Path):
    task = "echo $(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES; sleep $SLURM_PROCID; exit $((3 * SLURM_PROCID))"
    job = slurm.submit(
        *("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2", f"--output={tmp_path}/log"),
        f"--wrap=srun --kill-on-bad-exit=1 bash -c '{task}'",
    )
    slurm.wait(job, "FAILED")
    assert {"node1 0 0,1", "node2 1 0,1"} <= set(slurm.log(job).splitlines())
    columns = ("--noheader", "--allocations", "--format=State,ExitCode,NNodes")
    wait_until(
        lambda: slurm.run("sacct", *columns, f"--jobs={job}").split() == ["FAILED", "3:0", "2"],
        seconds=20,
        every=0.2,
    )
