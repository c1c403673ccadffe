"""The NeMo-Run script of docs/launch.md runs as it stands there, with the local executor."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.submit.local import environment_of_jobs

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_script_of_the_docs_runs(tmp_path: Path):
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "launch.md").read_text(), re.S)
    (tmp_path / "mine.py").write_text(script)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = environment_of_jobs() | {
        "PYTHONPATH": str(ROOT),
        "PATH": path,
        "NEMORUN_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "mine.py", "local", "runs/mine"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    assert (tmp_path / "runs/mine/model/config.json").is_file()
