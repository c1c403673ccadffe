"""Emulated hosts on this machine, for tests of several nodes.

A host has its own network interface and address, host name, process table, IPC, /dev/shm and /tmp, and shares the
file system: the kernel's namespaces, joined by a bridge. They need root on Linux; elsewhere `needs_hosts` skips.
Everything of a host ends with its first process, so nothing is left when it, or the test session, is killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("ip", "unshare", "nsenter", "mount")
PR_SET_PDEATHSIG = 1

INIT = r"""
set -eu
folder=$1; shift
hostname "$(cat "$folder/name")"
fd=10
for path in "$@"; do eval "exec $fd<\"\$path\""; fd=$((fd + 1)); done
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp /dev/shm
fd=10
for path in "$@"; do
    mkdir -p "$path"
    mount --no-canonicalize --bind "/proc/self/fd/$fd" "$path"
    eval "exec $fd<&-"
    fd=$((fd + 1))
done
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/nsswitch.conf" /etc/nsswitch.conf
touch "$folder/ready"
exec sleep infinity
"""
"""Process 1 of a host. Folders under /tmp that hosts share are opened before the host's own /tmp hides them."""


@cache
def find_obstacle() -> str:
    """Returns why this machine cannot emulate hosts; "" if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "emulated hosts need root on Linux"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"emulated hosts need {', '.join(lacking)} (apt-get install iproute2 util-linux)"
    unshare = ["unshare", "--net", "--pid", "--uts", "--ipc", "--mount", "--fork", "--mount-proc"]
    tried = subprocess.run(
        [*unshare, "ip", "link", "add", "omr-try", "type", "bridge"], capture_output=True, text=True
    )
    return f"emulated hosts need namespaces and bridges: {tried.stderr.strip()}" if tried.returncode else ""


needs_hosts = pytest.mark.skipif(bool(find_obstacle()), reason=find_obstacle() or "hosts can be emulated")


@dataclass
class Host:
    """A host of start_hosts."""

    name: str
    address: str
    folder: Path
    network: Network
    _init: subprocess.Popen | None = None
    _pid: int = 0  # of its process 1, as this machine numbers it

    def start(self) -> None:
        """Starts the host, also after a crash: with an empty /tmp and /dev/shm."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "ready").unlink(missing_ok=True)
        (self.folder / "name").write_text(self.name)
        (self.folder / "hosts").write_text(self.network.hosts_file())
        # names come from the file alone: a look-up through DNS would wait for its time-out
        (self.folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        with (self.folder / "init.log").open("wb") as log:
            self._init = subprocess.Popen(
                ["unshare", "--net", "--pid", "--uts", "--ipc", "--mount", "--fork", "--kill-child"]
                + ["--mount-proc", "bash", "-c", INIT, "init", str(self.folder), *self.network.shared],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._wait_until_ready()
        self._plug_in()

    def command(self, words: Sequence[str], *, cwd: str | Path = ROOT) -> list[str]:
        """Returns the command that runs `words` on this host in the folder `cwd`."""
        assert self._pid, f"{self.name} is down"
        enter = ["nsenter", f"--target={self._pid}", "--net", "--pid", "--uts", "--ipc", "--mount"]
        return [*enter, "--", "env", "-C", str(cwd), *words]

    def popen(
        self, words: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen:
        """Starts `words` on this host, with `env` beside this process' environment; output goes to `log`.

        Signals to the process reach nsenter, not the command: to end it, use crash(), or kill its own processes.
        """
        with (log or Path(os.devnull)).open("ab") as out:
            return subprocess.Popen(
                self.command(words),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )

    def run(self, *words: str, timeout: float = 60.0) -> str:
        """Returns what `words` prints on this host; raises CalledProcessError if it fails."""
        done = subprocess.run(
            self.command(words), capture_output=True, text=True, timeout=timeout, check=True
        )
        return done.stdout

    def unplug(self) -> None:
        """Cuts the network, without a word to those that are connected."""
        _ip("link", "set", self._cable, "down")

    def crash(self) -> None:
        """Ends every process of the host at once; its address is gone."""
        if self._init is None:
            return
        # The cable first: a host that loses power does not close its connections.
        subprocess.run(["ip", "link", "del", self._cable], capture_output=True)
        self._init.kill()  # unshare's child, process 1 of the host, dies with it
        self._init.wait()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{self._pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._init, self._pid = None, 0

    @property
    def _cable(self) -> str:
        return f"{self.network.bridge}v{self.address.rpartition('.')[2]}"

    def _wait_until_ready(self) -> None:
        assert self._init is not None
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        deadline = time.monotonic() + 20
        while not (self.folder / "ready").exists():
            if self._init.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start: {(self.folder / 'init.log').read_text()}")
            time.sleep(0.01)
        self._pid = int(children.read_text())

    def _plug_in(self) -> None:
        # that of a killed session's host, which the kernel has not taken away yet
        subprocess.run(["ip", "link", "del", self._cable], capture_output=True)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid))
        _ip("link", "set", self._cable, "master", self.network.bridge, "up")
        inside = ["nsenter", f"--target={self._pid}", "--net", "ip"]
        for words in (
            ["link", "set", "lo", "up"],
            ["addr", "add", f"{self.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["route", "add", "default", "via", self.network.gateway],
        ):
            subprocess.run([*inside, *words], check=True)


@dataclass
class Network:
    """The bridge that joins the hosts, and what all of them see."""

    number: int  # of this network on this machine
    shared: tuple[str, ...]  # folders under /tmp that hosts see, too
    hosts: list[Host] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        return f"omr{self.number}"

    @property
    def gateway(self) -> str:
        """The address of this machine in the network."""
        return f"10.87.{self.number}.1"

    def hosts_file(self) -> str:
        lines = ["127.0.0.1 localhost", f"{self.gateway} {os.uname().nodename}"]
        return "\n".join([*lines, *(f"{host.address} {host.name}" for host in self.hosts)]) + "\n"


@contextmanager
def start_hosts(names: Sequence[str], folder: Path) -> Iterator[list[Host]]:
    """Starts hosts of these names, and ends them with all that runs on them.

    Args:
        folder: for their own files, and what tests share between them: every host sees it under the same path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        network = stack.enter_context(_bridge(_list_shared(folder)))
        network.hosts += [
            Host(name, f"10.87.{network.number}.{10 + i}", folder / "hosts" / name, network)
            for i, name in enumerate(names, start=1)
        ]
        for host in network.hosts:
            stack.callback(host.crash)
            host.start()
        yield network.hosts


@contextmanager
def _bridge(shared: tuple[str, ...]) -> Iterator[Network]:
    """Adds a bridge with a number that no other network on this machine has."""
    for number in range(1, 255):
        network = Network(number=number, shared=shared)
        added = subprocess.run(["ip", "link", "add", network.bridge, "type", "bridge"], capture_output=True)
        if added.returncode and _is_left_over(network):
            added = subprocess.run(["true"])
        if added.returncode == 0:
            break
    else:
        raise RuntimeError("no free number for a bridge of emulated hosts; `ip link` lists them")
    try:
        _ip("addr", "replace", f"{network.gateway}/24", "dev", network.bridge)
        _ip("link", "set", network.bridge, "up")
        Path(f"/run/{network.bridge}.pid").write_text(str(os.getpid()))
        yield network
    finally:
        _ip("link", "del", network.bridge)
        Path(f"/run/{network.bridge}.pid").unlink(missing_ok=True)


def _is_left_over(network: Network) -> bool:
    """Returns whether a bridge is ours, of a process that was killed."""
    owner = Path(f"/run/{network.bridge}.pid")
    return owner.is_file() and not Path(f"/proc/{owner.read_text()}").exists()


def _list_shared(folder: Path) -> tuple[str, ...]:
    """Returns the folders under /tmp that a host needs: the test's, the checkout, Python, and what Python compiled."""
    wanted = [folder, ROOT, Path(sys.prefix), Path(os.environ.get("PYTHONPYCACHEPREFIX", "/"))]
    found = (path.resolve() for path in wanted if path.exists())
    return tuple(dict.fromkeys(str(path) for path in found if path.is_relative_to("/tmp")))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
