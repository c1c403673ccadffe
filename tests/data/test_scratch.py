"""Temporary folders of commands: one each, gone at the end, or at the next start after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.left_over import find_processes
from data_pipeline.scratch import scratch_folder
from tests.helpers.processes import wait_until

ROOT = Path(__file__).parents[2]
CHILD = """
import multiprocessing, os, signal, subprocess, sys, time
from pathlib import Path
from data_pipeline.scratch import scratch_folder

with scratch_folder() as folder:
    lock = multiprocessing.get_context("spawn").Lock()
    (folder / f"vllm_dist_{folder.name}").touch()
    Path(f"/dev/shm/vllm_dist_{folder.name}-0").touch()
    sleeps = [sys.executable, "-c", "import time; time.sleep(300)"]
    one = subprocess.Popen(sleeps, start_new_session=True)
    os.kill(one.pid, signal.SIGSTOP)
    with (folder / "log").open("w") as log:
        other = subprocess.Popen(sleeps, start_new_session=True, env={}, pass_fds=[log.fileno()])
    with (folder / "log").open() as log:  # who only reads is left alone
        subprocess.Popen(sleeps, env={}, pass_fds=[log.fileno()])
    Path(sys.argv[1]).write_text(f"{folder.name} {one.pid} {other.pid}")
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
    """And not what a running one has: processes, one of which is stopped, files, and shared memory."""
    killed, running = (start_child(tmp_path / name) for name in ("killed", "running"))
    try:
        os.killpg(killed.pid, 9)  # with the tracker that would remove its semaphore
        killed.wait()
        said = [(tmp_path / name).read_text().split() for name in ("killed", "running")]
        names = [words[0] for words in said]
        assert all(count_shared(name) == 2 for name in names)
        assert all(sorted(find_processes(base / words[0])) == sorted(map(int, words[1:])) for words in said)
        with scratch_folder() as folder:
            assert {path.name for path in base.iterdir()} == {names[1], folder.name}
            assert [count_shared(name) for name in names] == [0, 2]
            assert [len(find_processes(base / name)) for name in names] == [0, 2]
    finally:
        os.killpg(running.pid, 9)
        running.wait()
    with scratch_folder():
        assert not find_processes(base / names[1])
    assert list(base.iterdir()) == []


def count_shared(name: str) -> int:
    return sum(name in path.name for path in Path("/dev/shm").iterdir())


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
