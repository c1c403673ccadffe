"""Runs `omr` commands in a process of their own, several in one: importing NeMo-Run takes seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from launch.submit.local import environment_of_jobs

ROOT = Path(__file__).parents[2]
CODE = """
import contextlib, io, json, sys
from launch.cli import main
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as leave:
            code = int(leave.code or 0)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run_omr(
    *commands: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 200
) -> list[Outcome]:
    """Returns exit code and output of each command, run one after the other in `cwd`."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(commands),
        cwd=cwd,
        env={**environment_of_jobs(), "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]


def path_with(folder: Path, *tools: str) -> str:
    """Returns a PATH that has these tools alone; makes them in `folder`."""
    folder.mkdir()
    for tool in tools:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return str(folder)
