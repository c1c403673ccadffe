"""A run whose parts are killed and stopped ends as one that nobody disturbed, and leaves nothing behind."""

from __future__ import annotations

import json
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
from benchmarks.chaos.plan import KINDS, NEVER, WAYS, Strike, plan_strikes
from megatron_omr.config import FaultConfig
from rl.config import RLConfig

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


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(1200)
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


def write_run(run: Path, **changes: object) -> Path:
    """Writes what a run of three steps leaves, with other lines for the files that `changes` names."""
    steps = 3
    files: dict[str, object] = {
        "metrics": [{"step": step, "reward": step / 8, "policy_version": step} for step in range(steps)],
        "rollouts": [{"step": step, "responses": [{"response": "a", "reward": 1}]} for step in range(steps)],
        "trained": [{"step": n, "groups": [{"id": f"q{n}", "oldest": n, "newest": n}]} for n in range(steps)],
        "mode": "sync",
        "weights": "w",
        **changes,
    }
    (run / "hf").mkdir(parents=True)
    for name in ("metrics", "rollouts", "trained"):
        rows = files[name]
        assert isinstance(rows, list)
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"rollout": {"mode": files["mode"]}, "algorithm": {"dynamic_sampling": {"enabled": False}}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "hf" / "model.safetensors").write_text(str(files["weights"]))
    return run


def trained(*groups: tuple[str, int, int]) -> list[dict]:
    return [
        {"step": step, "groups": [{"id": id, "oldest": oldest, "newest": newest}]}
        for step, (id, oldest, newest) in enumerate(groups)
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metrics": [{"step": 0}, {"step": 2}]}, r"metrics.jsonl has steps \[0, 2\]"),
        ({"trained": []}, "there is no trained.jsonl"),
        ({"trained": trained(("q0", 0, 0), ("q0", 1, 1), ("q2", 2, 2))}, "other prompts were trained on"),
        (
            {"trained": trained(("q0", 0, 0), ("q1", 0, 1), ("q2", 2, 2))},
            "step 1 trained on q1 of versions 0 to 1",
        ),
        (
            {"trained": trained(("q0", 0, 0), ("q1", 1, 2), ("q2", 2, 2))},
            "step 1 trained on q1 of versions 1 to 2",
        ),
        (
            {"metrics": [{"step": n, "reward": 0.5, "policy_version": n} for n in range(3)]},
            "differs in reward",
        ),
        (
            {"rollouts": [{"step": 0, "responses": [{"response": "b", "reward": 1}]}]},
            "responses or rewards differ",
        ),
        ({"weights": "v"}, "hf/model.safetensors differs"),
    ],
)
def test_whatever_differs_from_the_undisturbed_run_is_named(
    changes: dict[str, object], problem: str, tmp_path: Path
) -> None:
    calm = write_run(tmp_path / "calm")
    assert list(compare_runs(write_run(tmp_path / "same"), calm, steps=3)) == []
    found = list(compare_runs(write_run(tmp_path / "other", **changes), calm, steps=3))
    assert any(re.search(problem, line) for line in found), found


def test_strikes_are_drawn_from_the_seed_and_have_every_way() -> None:
    strikes = plan_strikes(56, steps=150, seed=1, kinds=KINDS)
    assert (
        strikes
        == plan_strikes(56, steps=150, seed=1, kinds=KINDS)
        != plan_strikes(56, steps=150, seed=2, kinds=KINDS)
    )
    assert {(s.kind, s.signal) for s in strikes} == {
        (kind, signal) for kind, signal, _ in WAYS if kind in KINDS
    }
    steps = [strike.step for strike in strikes]
    assert steps == sorted(steps) and steps[0] == 0 and 100 < steps[-1] < 150
