"""`make test` runs the light tests, then the heavy ones, each on two cores, and fails if either fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import os
import pytest

def test_light_passes(): assert "PYTEST_XDIST_WORKER" in os.environ
def test_light_fails(): assert False

@pytest.mark.heavy
def test_heavy_passes(): assert "PYTEST_XDIST_WORKER" in os.environ

@pytest.mark.heavy
def test_heavy_fails(): assert False
"""


def make_test(folder: Path, selection: str) -> tuple[int, str]:
    """Returns the exit code and the output of `make test` in a project of those four tests."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    heavy:\n    gpu:\n")
    (folder / "test_it.py").write_text(TESTS)
    command = ["make", "--file", str(ROOT / "Makefile"), "--assume-old=setup", "test"]
    variables = [f"BIN={Path(sys.executable).parent}", f"PYTEST=-p tests.conftest -k '{selection}'"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [*command, *variables],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("selection", "passes", "summaries"),
    [
        ("heavy_passes", True, ("no tests ran", "1 passed in")),
        ("passes", True, ("1 passed in", "1 passed in")),
        (
            "light_fails or heavy_passes",
            False,
            ("1 failed in", "1 passed in", "light tests: exit code 1"),
        ),
        ("light_passes or heavy_fails", False, ("1 passed in", "1 failed in", "heavy tests: 1")),
        ("nowhere", False, ("light tests: exit code 5, heavy tests: 5",)),
    ],
)
def test_both_parts_run_and_either_can_fail(
    selection: str, passes: bool, summaries: tuple[str, ...], tmp_path: Path
):
    code, output = make_test(tmp_path, selection)
    assert (code == 0) == passes, output
    assert all(summary in output for summary in summaries), output
