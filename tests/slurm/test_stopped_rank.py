"""A rank that is stopped is named in the job's log, and ends the job."""

from __future__ import annotations

import re

import pytest

from data_pipeline.files import read_json
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.slurm_runs import TinyRuns

pytestmark = [pytest.mark.heavy, pytest.mark.slow]


def test_a_stopped_rank_is_named_with_host_phase_and_stack(slurm: SlurmCluster, runs: TinyRuns):
    job = runs.submit_sft("stopped", "--fault.beat", "1", "--fault.silence", "6")
    runs.wait_for_step("stopped", 4)
    pid = read_json(runs.root / "stopped/heartbeats/rank-00001.json")["pid"]
    slurm.nodes["node2"].run("kill", "-STOP", str(pid))
    slurm.wait(job, "FAILED", seconds=60)
    found = re.search(
        rf"omr: error: rank 1 on host node2 \(process {pid}\) has given no sign of life for \d+ s "
        r"\(fault.silence=6\); last phase: \S.*; in:\n +\S+",
        slurm.log(job),
    )
    assert found, slurm.log(job)
