"""`omr launch` from a machine that is not the cluster's: commands over ssh, code over rsync, records on this side."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.launching import run_omr
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.ssh_server import start_ssh_server

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        shutil.which("ssh") is None or shutil.which("rsync") is None, reason="needs ssh and rsync"
    ),
]


def test_job_is_submitted_followed_and_asked_about_over_ssh(slurm: SlurmCluster, tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    env = {**os.environ, **slurm.env}
    with start_ssh_server(tmp_path, env) as (port, key, tools):
        (here / "far.toml").write_text(
            f'kind = "slurm"\nfolder = "{there}"\nsetup = ["export PATH={Path(sys.executable).parent}:$PATH"]\n'
            f'[ssh]\nhost = "127.0.0.1"\nuser = "me"\nport = {port}\nidentity = "{key}"\n'
            '[slurm]\ntime = "00:10:00"\nsignal_seconds = 60\ntasks_per_node = 1\n'
        )
        digits = ["data", "digits", "data", "--train", "8", "--validation", "1", "--test", "1"]
        done, status, logs, refused, absent = run_omr(
            ["launch", *digits, "--on", "far.toml"],
            ["launch", "status", "data", "--json"],
            ["launch", "logs", "data", "--lines", "4"],
            ["launch", "sft", "demo", "--run", str(there / "x"), "--on", "far.toml"],
            ["launch", "sft", "demo", "--on", "far.toml"],
            cwd=here,
            env={
                "PATH": f"{tools}:{os.environ['PATH']}",
                "SLURM_CONF": "/nowhere",
                "HOME": str(tmp_path),
            },
        )
    assert done.code == 0, done.out + done.err
    assert "samples in data/train" in done.out and "COMPLETED" in done.err
    assert (there / "data/train/index.json").is_file() and not (here / "data").exists()
    assert json.loads(status.out)["state"] == "COMPLETED" and status.code == 0
    assert "job exited with code 0" in logs.out
    record = json.loads((here / "data.launch/job.json").read_text())
    assert record["host"] == "127.0.0.1" and record["log"].startswith(f"{there}/data.launch/logs/")
    assert list(there.glob("data.launch/experiments/omr/*/data/code/launch/cli.py")), "the packed code"
    assert (there / "data.launch/environment.txt").is_file()
    assert refused.code == 2 and "is a full path, but its records are kept here" in refused.err
    assert absent.code == 2
    assert f"model=runs/demo/model is not there on 127.0.0.1: no {there}/runs/demo/model" in absent.err
