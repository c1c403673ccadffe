"""slurm/chain.sh takes data to an evaluated policy through batch jobs, and stops where a stage fails."""

from __future__ import annotations

import pytest

from data_pipeline.files import read_json
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.slurm_runs import JOB_ENV, TWO_NODES, TinyRuns

pytestmark = [pytest.mark.heavy, pytest.mark.slow]


def test_the_chain_runs_from_data_to_evaluation(slurm: SlurmCluster, runs: TinyRuns):
    jobs = runs.submit_chain()
    assert list(jobs) == ["data", "sft", "convert", "rl", "eval"]
    for job in jobs.values():
        slurm.wait(job, "COMPLETED", seconds=240)
    assert slurm.show(jobs["sft"])["NodeList"] == slurm.show(jobs["rl"])["NodeList"] == "node[1-2]"
    assert (runs.count_steps("chain/sft"), runs.count_steps("chain/rl")) == (32, 2)
    assert read_json(runs.root / "chain/eval/summary.json")["count"] == 16


def test_a_failed_stage_cancels_those_after_it(slurm: SlurmCluster, runs: TinyRuns):
    words = (
        "--sbatch",
        f"--output={runs.root}/failed.log",
        "--convert",
        "to-hf nowhere nothing",
        "--eval",
        "demo",
    )
    printed = slurm.run("slurm/chain.sh", *words, env=JOB_ENV)
    jobs = dict(line.split() for line in printed.splitlines())
    slurm.wait(jobs["convert"], "FAILED")
    slurm.wait(jobs["eval"], "CANCELLED")
    assert slurm.show(jobs["convert"])["ExitCode"] == "2:0"
    lines = slurm.log(jobs["convert"]).splitlines()
    assert lines[0].startswith("omr: error: nowhere")
    assert (
        lines[-1] == f"omr.sbatch: job {jobs['convert']} ended with code 2: omr convert to-hf nowhere nothing"
    )


def test_one_failing_rank_ends_the_job_and_its_error_is_in_the_log(slurm: SlurmCluster, runs: TinyRuns):
    """The model lies on the first node alone, as files do that are not on a shared file system."""
    slurm.nodes["node1"].run("cp", "-r", str(runs.root / "model"), "/tmp/model")
    log = f"--output={runs.root}/one.log"
    job = slurm.submit(
        *TWO_NODES, log, "slurm/sft.sbatch", *runs.sft_words("one", model="/tmp/model"), env=JOB_ENV
    )
    slurm.wait(job, "FAILED")
    lines = slurm.log(job).splitlines()
    assert any(line.startswith("omr: error: ") and "/tmp/model" in line for line in lines)
    assert any("node2: task 1: Exited with exit code 2" in line for line in lines)
