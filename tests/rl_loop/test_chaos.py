"""A run whose parts are killed and stopped ends as one that nobody disturbed, and leaves nothing behind."""

from __future__ import annotations

import os
import pickle
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos.checks import compare_runs
from benchmarks.chaos.disturb import Disturber
from benchmarks.chaos.parts import Driver, adopting_orphans
from benchmarks.chaos.plan import NEVER, Strike
from megatron_omr.config import FaultConfig
from rl.config import RLConfig

pytestmark = [pytest.mark.heavy, pytest.mark.slow, pytest.mark.timeout(1200)]

COMMAND = """
import pickle, sys
from pathlib import Path
from launch import cli
from rl.loop import run_rl

cli.run = lambda *_: run_rl(pickle.loads(Path(sys.argv[1]).read_bytes()))
sys.exit(cli.main([]))
"""
STRIKES = [
    Strike(kind="engine", signal="SIGSTOP", seconds=NEVER, step=1, wait=0.0),
    Strike(kind="verifier", signal="SIGKILL", seconds=0.0, step=1, wait=0.0),
    # after a checkpoint, whose writer must not hold the sockets that tell the others
    Strike(kind="trainer", signal="SIGKILL", seconds=0.0, step=2, wait=0.5),
    Strike(kind="driver", signal="SIGSTOP", seconds=NEVER, step=3, wait=0.0),
]


def test_killed_and_stopped_parts_change_nothing_and_leave_nothing(
    finished: Path, sampling_config: RLConfig, tmp_path: Path
) -> None:
    """An engine is found by its deadline; a trainer's death is named; a stopped driver refuses a second start."""
    run, config = tmp_path / "disturbed", tmp_path / "config"
    engine = replace(sampling_config.engine, transfer_timeout=10, token_timeout=10)
    disturbed = replace(sampling_config, run=str(run), engine=engine, fault=FaultConfig(beat=1, silence=30))
    config.write_bytes(pickle.dumps(disturbed))
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="c") as base:  # short: Ray's sockets lie in it
        command = [sys.executable, "-c", COMMAND, str(config)]
        driver = Driver(command, {**os.environ, "TMPDIR": base}, tmp_path / "log")
        with adopting_orphans():
            report = Disturber(driver, None, run, STRIKES).run()
        assert list(Path(base).iterdir()) == []
    assert report.problems == [] and report.starts == 3
    killed, stopped = report.ends
    assert re.search(r"exit code 1: .*trainer rank \d .*SIGKILL", killed) and "exit code -9" in stopped
    assert list(compare_runs(run, finished, steps=disturbed.steps)) == []
