"""The processes of a run, found from outside: as descendants of the driver, by the titles that Ray gives them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Makes this process the parent of descendants whose parent has ended, so that none is lost from sight."""
    prctl = ctypes.CDLL(None).prctl
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("the kernel refuses PR_SET_CHILD_SUBREAPER")
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Driver:
    """The command of a run, which is started anew where it has ended."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.command, self.environment, self.log = command, environment, log
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "start it first"
        return self._process

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            log.write(f"---- start {self.starts} ----\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def last_words(self) -> str:
        """Returns the last line that its latest start wrote."""
        text = self.log.read_text(errors="replace").rpartition("---- start ")[2]
        lines = [line for line in text.splitlines()[1:] if line.strip()]
        errors = [line for line in lines if line.startswith("omr: error")]
        return (errors or lines or [""])[-1][:300]

    def find_parts(self) -> dict[str, list[psutil.Process]]:
        """Returns the processes that run, by kind."""
        found: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(self.process.pid)]}
        for process in list_children(self.process.pid):
            if kind := _kind_of(process, self.process.pid):
                found.setdefault(kind, []).append(process)
        return found


class Judge:
    """The process of the judge's server, always at the same port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = self._start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def restart(self) -> None:
        """Starts it again where it was killed."""
        if self.process.poll() is not None:
            self.process = self._start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "benchmarks.chaos.judge", str(self.port)])


def list_children(pid: int) -> list[psutil.Process]:
    """Returns the descendants of a process that have not ended; none of one that has ended itself."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def collect_ended(keep: set[int]) -> None:
    """Waits for the orphans that have ended; not for the children `keep`, whose exit codes others take."""
    for child in psutil.Process().children():
        try:
            if child.pid not in keep and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue


def end_all(processes: Sequence[psutil.Process]) -> None:
    """Kills what is left."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())[:100]}"
    except psutil.Error:
        return f"{process.pid} (ended)"


def wait_for_end(find: Callable[[], list[psutil.Process]], seconds: float) -> list[psutil.Process]:
    """Returns what `find()` still finds after so many seconds, or [] as soon as it finds nothing."""
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Returns False where the process has ended."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def _kind_of(process: psutil.Process, driver: int) -> str:
    try:
        words, parent = process.cmdline(), process.ppid()
        title = words[0] if words else ""
        if title.startswith("ray::TrainerProcess"):
            # a fork of a trainer, which writes a checkpoint, has its title
            above = psutil.Process(parent).cmdline()
            return "writer" if above and above[0].startswith("ray::TrainerProcess") else "trainer"
        if title.startswith("ray::Engine"):
            return "engine"
        if title.endswith("/raylet"):
            return "raylet"
        return "verifier" if parent == driver and any("spawn_main" in word for word in words) else ""
    except psutil.Error:
        return ""
