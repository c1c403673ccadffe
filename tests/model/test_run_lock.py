"""One process at a time trains a run, and the message about another says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from megatron_omr.faults import run_lock
from megatron_omr.faults.run_lock import hold_run
from tests.helpers.processes import wait_until

HOLDER = """
import sys, time
from pathlib import Path
from megatron_omr.faults.run_lock import hold_run

with hold_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_run_of_another_process_is_refused_until_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.2)
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, run], stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=rf"is being trained by process {holder.pid} .*; end it first"):
            hold_run(run).__enter__()
        psutil.Process(holder.pid).suspend()
        wait_until(lambda: psutil.Process(holder.pid).status() == psutil.STATUS_STOPPED)
        with pytest.raises(ValueError, match=rf"stopped; kill -CONT {holder.pid} continues it"):
            hold_run(run).__enter__()
        holder.kill()
    for _ in range(2):
        with hold_run(run):
            pass
