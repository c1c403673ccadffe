"""`omr launch` on a real Slurm of two nodes, through NeMo-Run, looked after from other processes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from megatron_omr.train.run_folder import list_checkpoints
from tests.helpers.launching import Outcome, run_omr
from tests.helpers.processes import wait_until
from tests.helpers.sft_runs import read_metrics
from tests.helpers.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.heavy

CLUSTER = """
kind = "slurm"
[slurm]
time = "00:10:00"
tasks_per_node = 1
cpus_per_node = 2
signal_seconds = 60
[environment]
GREETING = "it's $HOME"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the nodes see, with a cluster file."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "site.toml").write_text(CLUSTER)
    (folder / "broken").mkdir()
    (folder / "broken" / "index.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def launched(slurm_session: SlurmCluster, folder: Path) -> Mapping[str, Outcome]:
    """A run that ends, one that fails, and one that is left running."""
    sft = ["launch", "sft", "demo", "--on", "site.toml", "--model", "model", "--checkpoint.every", "1000"]
    commands = {
        "data": ["data", "digits", "data", "--train", "256", "--validation", "1", "--test", "1"],
        "model": ["tiny", "data/train", "model"],
        "done": [*sft, "--loader.shards", "data/train", "--steps", "2", "--run", "runs/done"],
        "failed": [*sft, "--loader.shards", "broken", "--run", "runs/failed"],
        "long": [*sft, "--loader.shards", "data/train", "--steps", "9000", "--run", "runs/long", "--detach"],
    }
    done = run_omr(*commands.values(), cwd=folder, env=slurm_session.env)
    assert [outcome.code for outcome in done[:2]] == [0, 0], done[:2]
    return dict(zip(commands, done, strict=True))


def test_run_on_two_nodes_ends_with_everything_in_its_folder(launched: Mapping[str, Outcome], folder: Path):
    outcome, run = launched["done"], folder / "runs/done"
    assert outcome.code == 0, outcome.out + outcome.err
    assert "omr launch: job" in outcome.err and "COMPLETED" in outcome.err.splitlines()[-1]
    assert "0: backends:" in outcome.out, "the log is shown, with the number of the task"
    assert len(read_metrics(run)) == 2 and (run / "hf" / "config.json").is_file()
    config = json.loads((run / "config.json").read_text())
    assert (config["steps"], config["processes"]) == (2, 2)
    records = run / "launch"
    assert {"revision", "diff.patch", "environment.txt", "cluster.toml", "script.sh", "job.json", "logs"} <= {
        path.name for path in records.iterdir()
    }
    assert "\nnemo-run==0.11.1\n" in (records / "environment.txt").read_text()
    assert list(records.glob("experiments/omr/*/sft/code/launch/executors.py")), "the packed code"


def test_failing_task_gives_its_code_and_its_last_lines(
    launched: Mapping[str, Outcome], folder: Path, slurm_session: SlurmCluster
):
    outcome = launched["failed"]
    assert outcome.code == 2, outcome.out + outcome.err
    assert re.search(r"FAILED .*, exit code 2;", outcome.err.splitlines()[-1])
    assert "omr: error: broken" in outcome.out
    status, logs, unknown = run_omr(
        ["launch", "status", "runs/failed"],
        ["launch", "logs", "runs/failed", "--lines", "3"],
        ["launch", "status", "runs/none"],
        cwd=folder,
        env=slurm_session.env,
    )
    assert status.code == 1 and "exit code 2" in status.out and "omr: error: broken" in status.out
    assert logs.code == 0 and len(logs.out.splitlines()) == 3
    assert unknown.code == 2 and "runs/none has no launch/job.json" in unknown.err


def test_run_is_looked_after_from_other_processes(
    launched: Mapping[str, Outcome], folder: Path, slurm_session: SlurmCluster
):
    """It gets the signal of a time limit, continues, loses a node, continues, and is cancelled."""
    assert launched["long"].code == 0, launched["long"].err
    run = folder / "runs/long"
    job = json.loads((run / "launch" / "job.json").read_text())["job"]

    def omr(*words: str) -> Outcome:
        return run_omr(["launch", *words], cwd=folder, env=slurm_session.env)[0]

    def steps() -> int:
        return len(read_metrics(run)) if (run / "metrics.jsonl").is_file() else 0

    wait_until(lambda: steps() > 2, seconds=60, every=0.2)
    again = omr("sft", "demo", "--on", "site.toml", "--run", "runs/long", "--model", "model",
                "--loader.shards", "data/train")  # fmt: skip
    assert again.code == 2 and f"job {job} of runs/long is RUNNING" in again.err
    slurm_session.cancel(job, "--signal=USR1")
    wait_until(lambda: list_checkpoints(run / "checkpoints"), seconds=60, every=0.2)
    saved = int(list_checkpoints(run / "checkpoints")[-1].name.removeprefix("step-"))
    wait_until(lambda: steps() > saved + 1, seconds=60, every=0.2)
    shown = omr("status", "runs/long", "--json")
    assert shown.code == 0 and json.loads(shown.out)["state"] == "RUNNING"
    assert "started anew 1 times" in json.loads(shown.out)["detail"]
    assert "ended with code 75 and goes back to the queue" in omr("logs", "runs/long").out

    slurm_session.crash("node2")
    slurm_session.wait(job, "PENDING", seconds=90)
    slurm_session.up("node2")
    seen = steps()
    wait_until(lambda: steps() > seen + 1, seconds=90, every=0.2)
    assert slurm_session.show(job)["Restarts"] == "2"

    assert omr("cancel", "runs/long").out == f"job {job} is cancelled\n"
    slurm_session.wait(job, "CANCELLED", seconds=60)
    status, again = run_omr(
        ["launch", "status", "runs/long"],
        ["launch", "cancel", "runs/long"],
        cwd=folder,
        env=slurm_session.env,
    )
    assert status.code == 1 and "CANCELLED" in status.out
    assert "has ended already" in again.out
    assert list_checkpoints(run / "checkpoints")
