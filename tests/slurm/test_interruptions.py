"""A job of slurm/sft.sbatch that scancel, a time limit and a lost node interrupt ends in the weights of one that ran
through.

It meets all of them, one after the other, since starting its ranks takes longer than its steps.
"""

from __future__ import annotations

import pytest

from megatron_omr.checkpoint.manifest import check_files, read_manifest
from megatron_omr.train.run_folder import list_checkpoints
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.slurm_runs import TinyRuns

pytestmark = [pytest.mark.heavy, pytest.mark.slow]


def test_interrupted_runs_end_as_one_that_ran_through(slurm: SlurmCluster, runs: TinyRuns):
    undisturbed = runs.finish_sft()

    job = runs.submit_sft("disturbed")
    runs.wait_for_step("disturbed", 4)
    slurm.cancel(job, "--signal=USR1", "--batch")  # as Slurm does ahead of a time limit
    slurm.wait(job, "PENDING")
    assert "stopped by SIGUSR1" in slurm.log(job)
    assert "it stopped ahead of the time limit: job" in slurm.log(job)

    runs.wait_for_step("disturbed", 12)
    slurm.crash("node2")
    slurm.wait(job, "PENDING")
    slurm.up("node2")

    slurm.wait(job, "RUNNING")
    runs.wait_for_step("disturbed", 20)
    slurm.cancel(job)
    slurm.wait(job, "CANCELLED")
    assert slurm.show(job)["Restarts"] == "2"
    kept = list_checkpoints(runs.root / "disturbed/checkpoints")
    check_files(kept[-1], read_manifest(kept[-1]))  # raises for a damaged file

    slurm.wait(runs.submit_sft("disturbed"), "COMPLETED")
    assert runs.read_weights("disturbed") == runs.read_weights(undisturbed)
