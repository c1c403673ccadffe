"""Nothing that a guarded command started outlives the process that started the guard."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.processes import wait_until

RUNAWAY = """
import subprocess, sys, time
child = [sys.executable, "-c", "import time; time.sleep(60)", sys.argv[1]]
subprocess.Popen(child, start_new_session=True)  # leaves group and session
if sys.argv[2] == "stays":
    time.sleep(60)
sys.exit(3)
"""
STARTER = """
import subprocess, sys, time
guard = [sys.executable, "-m", "launch.ranks.guard", sys.executable, "-c", sys.argv[1], sys.argv[2], "stays"]
kept = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True).stdin
subprocess.Popen(["sleep", "20"], pass_fds=[kept.fileno()])  # holds the pipe open, too
time.sleep(60)
"""


def running(mark: str) -> list[psutil.Process]:
    found = [p for p in psutil.process_iter(["cmdline", "status"]) if mark in (p.info["cmdline"] or [])]
    return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]


def test_killed_starter_leaves_nothing(tmp_path: Path):
    mark = str(tmp_path)
    starter = subprocess.Popen([sys.executable, "-c", STARTER, RUNAWAY, mark])
    wait_until(lambda: len(running(mark)) == 4, seconds=20)  # starter, guard, command, its child
    starter.kill()
    starter.wait()
    wait_until(lambda: not running(mark), seconds=15)


@pytest.mark.parametrize("ending", ["command", "starter"])
def test_guard_ends_with_the_code_of_its_command(ending: str, tmp_path: Path):
    mark = str(tmp_path)
    command = [sys.executable, "-c", RUNAWAY, mark, "ends"] if ending == "command" else ["sleep", "60"]
    guard = subprocess.Popen([sys.executable, "-m", "launch.ranks.guard", *command], stdin=subprocess.PIPE)
    if ending == "command":
        assert guard.wait(20) == 3
    else:
        wait_until(psutil.Process(guard.pid).children, seconds=20)
        started = time.monotonic()
        guard.terminate()  # as scancel sends it to every process; the starter decides
        time.sleep(0.2)
        assert guard.poll() is None and guard.stdin is not None
        guard.stdin.close()
        assert guard.wait(20) != 0 and time.monotonic() - started < 10
    assert not running(mark)
