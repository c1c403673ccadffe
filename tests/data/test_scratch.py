"""Temporary folders of commands: one each, gone at the end, or at the next start after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.scratch import scratch_folder
from tests.helpers.processes import wait_until

ROOT = Path(__file__).parents[2]
CHILD = """
import multiprocessing, sys, time
from pathlib import Path
from data_pipeline.scratch import scratch_folder

with scratch_folder() as folder:
    lock = multiprocessing.get_context("spawn").Lock()
    Path(sys.argv[1]).write_text(folder.name)
    time.sleep(300)
"""


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR that is short enough for sockets below it."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="b") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


def test_all_temporary_files_lie_in_the_folder_and_go_with_it(base: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent == base and folder.stat().st_mode & 0o777 == 0o700
        assert Path(tempfile.mkdtemp()).parent == folder
        child = "import tempfile; print(tempfile.mkdtemp())"
        made = subprocess.run(
            [sys.executable, "-c", child], capture_output=True, text=True, check=True
        ).stdout
        assert Path(made).parent == folder
    assert list(base.iterdir()) == [] and os.environ["TMPDIR"] == tempfile.gettempdir() == str(base)


def test_what_a_killed_process_left_goes_at_the_next_start(base: Path, tmp_path: Path) -> None:
    """And not what a running one has."""
    killed, running = (start_child(tmp_path / name) for name in ("killed", "running"))
    try:
        os.killpg(killed.pid, 9)  # with the tracker that would remove its semaphore
        killed.wait()
        names = [(tmp_path / name).read_text() for name in ("killed", "running")]
        assert all(any(Path("/dev/shm").glob(f"sem.{name}-*")) for name in names)
        with scratch_folder() as folder:
            assert {path.name for path in base.iterdir()} == {names[1], folder.name}
            assert [any(Path("/dev/shm").glob(f"sem.{name}-*")) for name in names] == [False, True]
    finally:
        os.killpg(running.pid, 9)
        running.wait()
    with scratch_folder():
        pass
    assert list(base.iterdir()) == []


def start_child(said: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, said], cwd=ROOT, start_new_session=True)
    wait_until(lambda: said.exists() and said.read_text())
    return child


def test_long_tmpdir_leaves_room_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 40)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with scratch_folder() as folder:
        assert folder.parent == Path("/tmp")
