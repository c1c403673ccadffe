"""Checkpoints of one Megatron-Core load in the other: weights, optimizer and schedule, in the same and other layouts.

This runs in .venv-latest, beside which .venv holds the oldest supported Megatron-Core for Python 3.11.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from data_pipeline.files import read_json
from tests.helpers.checkpoints import STATE, Step, check_same_step
from tests.latest.runs import CASES, load_all, save_all

ROOT = Path(__file__).parents[2]
OLDER = ROOT / ".venv" / "bin" / "python"
OF_ANOTHER_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")

pytestmark = pytest.mark.heavy


def run_older(*arguments: str | Path) -> None:
    """Calls a function of tests.latest.runs under the other Python, with its own packages alone."""
    env = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_PYTHON}
    done = subprocess.run(
        [OLDER, "-m", "tests.latest.runs", *arguments],
        cwd=ROOT,  # of this checkout, whichever one is installed there
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def runs(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """For both directions the folder of what was saved, and the one of what was loaded elsewhere."""
    if not OLDER.exists():
        pytest.skip("there is no .venv with the older Megatron-Core; `make setup` fills it")
    out = tmp_path_factory.mktemp("versions")
    run_older("save", tiny_hf, out / "older")
    save_all(tiny_hf, out / "newer")
    load_all(tiny_hf, out / "older", out / "older-in-newer")
    run_older("load", tiny_hf, out / "newer", out / "newer-in-older")
    return {
        "older": (out / "older", out / "older-in-newer"),
        "newer": (out / "newer", out / "newer-in-older"),
    }


def test_two_versions_were_compared(runs: dict[str, tuple[Path, Path]]) -> None:
    older, newer = (read_json(runs[name][0] / "versions.json") for name in ("older", "newer"))
    assert older["megatron-core"] == "0.16.1"
    assert tuple(map(int, newer["megatron-core"].split("."))) > (0, 16, 1)
    assert older["python"] < newer["python"]


@pytest.mark.parametrize("writer", ["older", "newer"])
@pytest.mark.parametrize(("one", "other"), CASES)
def test_next_step_is_the_same(runs: dict[str, tuple[Path, Path]], writer: str, one: str, other: str) -> None:
    saved, loaded = (
        folder / name for folder, name in zip(runs[writer], (one, f"{one}-{other}"), strict=True)
    )
    seen = read_json(loaded / "step.json")
    assert (seen["number"], seen["state"]) == (2, STATE)
    check_same_step(Step(**read_json(saved / "step.json")), saved, Step(**seen["step"]), loaded)
