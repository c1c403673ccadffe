"""Runs Ray on the nodes of a Slurm step: the first task is Ray's head and runs the driver, the others serve it.

The first task writes address and token, which nobody but the user can read, into the run's folder, which all nodes see.
Each of the others keeps a connection to it: through this they learn the exit code, with which all tasks end, or that
the first task is gone. All processes of Ray descend from the tasks, and end with them in whatever way they end
(guard.py).
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipeline.failures import RankError
from data_pipeline.files import read_json, write_json
from launch.ranks.identity import Step

MEET_SECONDS = 300.0
"""Limit of the wait of the other tasks for the first one's file."""
START_SECONDS = 120.0
"""Limit of the wait for Ray's first process."""
END_SECONDS = 15.0
"""At the end the first task waits so long for the others."""
LOST_SECONDS = 5
"""A node that does not acknowledge the exit code for so long is not waited for."""
KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}
"""A node that is lost without a word is noticed after 30 s."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Address and token of Ray's head, which the first task writes to a file for the others."""

    address: str
    ray_port: int
    exit_port: int
    token: str


@contextmanager
def lead_nodes(step: Step, run: Path, exit_code: Callable[[BaseException | None], int]) -> Iterator[None]:
    """Starts Ray's head for the driver, which is what runs inside: RAY_ADDRESS names it.

    Args:
        exit_code: gives the exit code of the driver from what it raised; the other tasks end with it.

    Raises:
        RankError: Ray did not start.
    """
    address = find_own_address(step.hosts[1])
    path, token = _file(step, run), secrets.token_hex(32)
    # Ray's processes and the driver inherit them
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    port = find_free_port(address, step.port)
    options = ["--head", f"--port={port}", "--include-dashboard=false", "--no-monitor"]
    # Ray's default for all its jobs is 10001, and it takes no 0; like the other ports it asks for the token
    options += [f"--ray-client-server-port={find_free_port(address, port + 1)}"]
    with ray_node(address, options) as node:
        _wait_for_port(node, address, port)
        os.environ["RAY_ADDRESS"] = f"{address}:{port}"
        others = OtherTasks(address, len(step.hosts) - 1)
        error: BaseException | None = None
        try:
            meeting = Meeting(address=address, ray_port=port, exit_port=others.port, token=token)
            old = os.umask(0o077)
            try:
                write_json(path, asdict(meeting))
            finally:
                os.umask(old)
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            path.unlink(missing_ok=True)
            del os.environ["RAY_ADDRESS"]
            _ignore_sigterm()  # srun sends it when one task has ended with an error: all shall end with the same code
            others.end(exit_code(error))


def serve_nodes(step: Step, run: Path) -> int:
    """Runs Ray on this node until the first task ends; returns its exit code, or 1 if it is lost.

    Raises:
        RankError: the first task is not found, or Ray ends on this node.
    """
    meeting, link = _find_first_task(_file(step, run))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": meeting.token, "RAY_USAGE_STATS_ENABLED": "0"}
    own = link.getsockname()[0]
    with link, ray_node(own, [f"--address={meeting.address}:{meeting.ray_port}"]) as node:
        while not select.select([link], [], [], 0.5)[0]:
            node.check()
        code = _read_code(link)
        _ignore_sigterm()
    if code is None:
        print(f"omr: error: the task on {step.hosts[0]} is lost, and with it the run", file=sys.stderr)
        return 1
    return code


class OtherTasks:
    """Tells the tasks of the other nodes how the driver ended."""

    def __init__(self, address: str, count: int) -> None:
        """Listens for them at a free port of `address`."""
        self._server = socket.create_server((address, 0))
        self._count, self._links = count, list[socket.socket]()
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def end(self, code: int) -> None:
        """Sends the exit code to all, and waits until they have ended, at most END_SECONDS."""
        deadline = time.monotonic() + END_SECONDS
        told = 0
        while told < self._count and time.monotonic() < deadline:  # some may be about to connect
            for link in self._links[told:]:
                told += 1
                with suppress(OSError):
                    # a node that was lost acknowledges nothing
                    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * LOST_SECONDS)
                    link.sendall(f"{code}\n".encode())
            time.sleep(0.05)
        for link in self._links:
            link.settimeout(max(0.1, deadline - time.monotonic()))
            with suppress(OSError):
                link.recv(1)  # it is closed with the task
            link.close()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed by `end`
            while True:
                link, _ = self._server.accept()
                _keep_alive(link)
                self._links.append(link)


class RayNode:
    """The process `ray start --block` of this node and all that it starts, which end with this process."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "launch.ranks.guard", sys.executable, "-m", "ray.scripts.scripts"]
                + ["start", "--block", *words],
                stdin=subprocess.PIPE,  # closes when this process ends, in whatever way
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C ends the driver first
            )

    def check(self) -> None:
        """Raises RankError if it has ended."""
        if self._guard.poll() is not None:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise RankError("\n".join([f"Ray ended on {socket.gethostname()}; its last lines:", *said[-12:]]))

    def stop(self) -> None:
        """Ends it and all it started."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()


@contextmanager
def ray_node(address: str, words: Sequence[str]) -> Iterator[RayNode]:
    """Starts Ray on this node, with files of its own: several jobs and users may share a machine."""
    # imports ray, which reads RAY_AUTH_MODE
    from data_pipeline.ray_session import find_store_bytes, keep_no_events

    keep_no_events()
    folder = tempfile.gettempdir()
    options = [
        f"--node-ip-address={address}",
        f"--temp-dir={folder}/ray",
        f"--object-store-memory={find_store_bytes()}",
        "--num-cpus=1",  # actors reserve GPUs alone; Ray would start an idle process for each CPU
        "--dashboard-agent-listen-port=0",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]
    node = RayNode([*words, *options], Path(folder, "ray_start.log"))
    try:
        yield node
    finally:
        node.stop()


def find_own_address(host: str) -> str:
    """Returns this machine's address on the way to `host`, a name or an address; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return probe.getsockname()[0]


def find_free_port(address: str, first: int) -> int:
    """Returns the first free port of `address` from `first` on."""
    for port in range(first, first + 1000):
        with suppress(OSError), socket.create_server((address, port)):
            return port
    raise RankError(f"no port of {address} from {first} to {first + 999} is free for Ray")


def _file(step: Step, run: Path) -> Path:
    return run / f".ray-{step.name}.json"


def _find_first_task(path: Path) -> tuple[Meeting, socket.socket]:
    """Waits for the first task's file, and connects to it; a file that a killed task left leads nowhere."""
    deadline = time.monotonic() + MEET_SECONDS
    while time.monotonic() < deadline:
        try:
            meeting = Meeting(**read_json(path))
            link = socket.create_connection((meeting.address, meeting.exit_port), timeout=10)
        except OSError:
            time.sleep(0.2)
            continue
        link.settimeout(None)
        _keep_alive(link)
        return meeting, link
    raise RankError(
        f"{path} did not appear within {MEET_SECONDS:g} s, or leads to no task; the run's folder must be on a file "
        "system that all nodes share, and the first node's output says whether Ray started there"
    )


def _read_code(link: socket.socket) -> int | None:
    said = b""
    with suppress(OSError):
        while not said.endswith(b"\n") and (more := link.recv(16)):
            said += more
    return int(said) if said.endswith(b"\n") else None


def _wait_for_port(node: RayNode, address: str, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        node.check()
        with suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise RankError(f"Ray did not answer at {address}:{port} within {START_SECONDS:g} s")
        time.sleep(0.1)


def _keep_alive(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        link.setsockopt(socket.IPPROTO_TCP, option, value)


def _ignore_sigterm() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
