"""A real Slurm on emulated hosts: controller, accounting and a daemon for each node, ended with the test session.

    with start_slurm(folder) as cluster:
        job = cluster.submit("--nodes=2", "job.sbatch")
        cluster.wait(job, "COMPLETED")

Everything runs on the hosts `login`, `node1`, `node2`, ...: whatever ends the session ends them, too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import hosts
from tests.helpers.hosts import ROOT, Host, start_hosts
from tests.helpers.processes import wait_until
from tests.helpers.slurm_files import DATABASE_PORT, write_slurm_files

PACKAGES = {
    "slurm-wlm": ("slurmctld", "slurmd", "sbatch"),
    "munge": ("munged",),
    "slurmdbd": ("slurmdbd",),
    "mariadb-server": ("mariadbd", "mariadb-install-db", "mariadb-admin"),
}
"""Debian's packages, and the programs that are used of them."""
MARIADB_OPTIONS = (
    "--skip-networking --skip-grant-tables --performance-schema=OFF --innodb-buffer-pool-size=64M "
    "--innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=2 --innodb-lock-wait-timeout=900"
)
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")


def skip_without_slurm() -> None:
    """Skips the test where no Slurm can be started."""
    lacking = [name for name, tools in PACKAGES.items() if any(shutil.which(tool) is None for tool in tools)]
    obstacle = f"apt-get install {' '.join(lacking)}" if lacking else hosts.find_obstacle()
    if obstacle:
        pytest.skip(f"no Slurm was started: {obstacle}")


@contextmanager
def start_slurm(folder: Path, nodes: int = 2) -> Iterator[SlurmCluster]:
    """Starts a Slurm of so many nodes, which all see `folder`, and ends it with all its jobs."""
    names = [f"node{number}" for number in range(1, nodes + 1)]
    with start_hosts(["login", *names], folder) as (login, *workers):
        cluster = SlurmCluster(
            folder / "slurm", login, {host.name: host for host in workers}, _environment(folder)
        )
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


def _environment(folder: Path) -> dict[str, str]:
    # A job's own TMPDIR would be the test session's, which the hosts do not have.
    return {"SLURM_CONF": str(folder / "slurm/etc/slurm.conf"), "TMPDIR": "/tmp"}


@dataclass
class SlurmCluster:
    """A running Slurm of start_slurm."""

    root: Path
    login: Host
    nodes: dict[str, Host]
    env: dict[str, str]
    """What a process of this machine needs in its environment to use this Slurm."""

    def __post_init__(self) -> None:
        self._daemons: list[subprocess.Popen] = []
        self._crashed: list[str] = []

    def start(self) -> None:
        """Starts all daemons, and waits until every node is idle."""
        addresses = {name: host.address for name, host in self.nodes.items()}
        write_slurm_files(self.root, self.login.name, self.login.address, addresses)
        self._start_munge()
        self._start_accounting()
        self._daemon(self.login, "slurmctld", "-D")
        for name in self.nodes:
            self._daemon(self.nodes[name], "slurmd", "-D", "-N", name)
        self.wait_until_idle()

    def close(self) -> None:
        """Ends all hosts, and with them daemons and jobs."""
        hosts_up = (*self.nodes.values(), self.login)
        with ThreadPoolExecutor(len(hosts_up)) as pool:  # the kernel takes its time for each
            list(pool.map(Host.crash, hosts_up))
        for daemon in self._daemons:
            daemon.wait()

    def run(
        self, *words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> str:
        """Returns what a command of Slurm prints; raises CalledProcessError if it fails."""
        environment = {**os.environ, **self.env, **(env or {})}
        try:
            done = subprocess.run(
                words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=True
            )
        except subprocess.CalledProcessError as failure:
            failure.add_note(failure.stderr)
            raise
        return done.stdout

    def submit(self, *words: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
        """Submits `sbatch *words` and returns the job's number."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd, env=env).strip()

    def show(self, job: str) -> dict[str, str]:
        """Returns what the controller knows of a job, by its own names: JobState, ExitCode, Restarts, StdOut, ..."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def state(self, job: str) -> str:
        """Returns a job's state, such as RUNNING."""
        return self.show(job)["JobState"]

    def log(self, job: str) -> str:
        """Returns what a job has printed so far."""
        path = Path(self.show(job)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, job: str, *states: str, seconds: float = 120) -> str:
        """Waits until a job is in one of these states, and returns it.

        Raises:
            AssertionError: it ended in another, or took too long; the message has what the job printed last.
        """
        until = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            if state in ENDED or time.monotonic() > until:
                raise AssertionError(
                    f"job {job} is {state}, not {' or '.join(states)}:\n{self.log(job)[-6_000:]}"
                )
            time.sleep(0.2)
        return state

    def wait_for_line(self, job: str, text: str, *, seconds: float = 120) -> None:
        """Waits until a job has printed `text`; raises AssertionError if it ended before, or took too long."""
        until = time.monotonic() + seconds
        while text not in (log := self.log(job)):
            state = self.state(job)
            if time.monotonic() > until or (state in ENDED and text not in self.log(job)):
                raise AssertionError(f"job {job}, {state}, did not print {text!r}:\n{log[-6_000:]}")
            time.sleep(0.2)

    def cancel(self, job: str, *options: str) -> None:
        """Cancels a job, or signals it with `options`, such as "--signal=USR1", "--batch"."""
        self.run("scancel", *options, job)

    def reset(self) -> None:
        """Cancels every job, starts crashed nodes, and waits until all are idle."""
        self.run("scancel", "--user=root")
        for node in list(self._crashed):
            self.up(node)
        self.wait_until_idle()

    def crash(self, node: str) -> None:
        """Ends a node with all that runs on it at once, as a loss of power does, and tells the controller.

        That finds it out itself after SlurmdTimeout, and then does the same.
        """
        self._crashed.append(node)
        self.nodes[node].crash()
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=crashed")

    def up(self, node: str) -> None:
        """Starts a crashed node again."""
        self._crashed.remove(node)
        self.nodes[node].start()
        self._daemon(self.nodes[node], "slurmd", "-D", "-N", node)

    def wait_until_idle(self) -> None:
        """Waits until every node is up and free."""

        def idle() -> bool:
            found = self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N %t")
            return sorted(found.split("\n")[:-1]) == sorted(f"{name} idle" for name in self.nodes)

        wait_until(idle, seconds=60, every=0.1)

    def _daemon(self, host: Host, *words: str, env: Mapping[str, str] | None = None) -> None:
        log = self.root / "log" / f"{words[0]}-{host.name}.out"
        self._daemons.append(host.popen(words, env={**self.env, **(env or {})}, log=log))

    def _start_munge(self) -> None:
        files = {"key-file": "etc/munge.key", "socket": "munge.socket", "pid-file": "run/munged.pid"}
        files |= {"log-file": "log/munged.log", "seed-file": "run/munge.seed"}
        options = [f"--{name}={self.root / path}" for name, path in files.items()]
        self._daemon(self.login, "munged", "--foreground", "--force", *options)
        wait_until(lambda: (self.root / "munge.socket").exists(), seconds=20)

    def _start_accounting(self) -> None:
        data, socket = self.root / "db/data", str(self.root / "db/socket")
        install = [
            "mariadb-install-db",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            "--skip-test-db",
        ]
        self.run(*self.login.command(install))
        self._daemon(
            self.login,
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={socket}"),
            *(f"--pid-file={self.root}/run/mariadbd.pid", *MARIADB_OPTIONS.split()),
        )
        ping = self.login.command(["mariadb-admin", "--no-defaults", f"--socket={socket}", "ping"])
        wait_until(lambda: subprocess.run(ping, capture_output=True).returncode == 0, seconds=60)
        # libmariadb takes the socket of the host "localhost" from this variable
        self._daemon(self.login, "slurmdbd", "-D", env={"MYSQL_UNIX_PORT": socket})
        port = f"exec 3<>/dev/tcp/{self.login.address}/{DATABASE_PORT}"
        wait_until(
            lambda: subprocess.run(["bash", "-c", port], capture_output=True).returncode == 0, seconds=60
        )
        self.run("sacctmgr", "--immediate", "--quiet", "add", "cluster", "tests")
