"""Runs Slurm's commands and looks at files where the cluster is: on this machine, or on its login node over ssh."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from launch.submit.config import SshConfig
from launch.submit.records import JobRecord

TIMEOUT = 120
"""Seconds that a command may take: a controller under load is slow to answer."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """A machine where Slurm's commands work."""

    ssh: SshConfig = SshConfig()

    def run(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Returns the outcome of a command, whatever it is.

        Raises:
            OSError: the command, or the login node, cannot be reached.
        """
        command = [*self._ssh(), shlex.join(words)] if self.ssh.host else list(words)
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{shlex.join(words[:2])} did not answer in {TIMEOUT} s") from None
        except FileNotFoundError:
            where = "this machine has no such command; name a login node in [ssh] of the cluster file"
            raise OSError(f"{command[0]}: {where}") from None
        if self.ssh.host and done.returncode == 255:  # ssh's own
            raise OSError(f"ssh to {self.ssh.host} failed: {done.stderr.strip()}")
        return done

    def exists(self, path: str) -> bool:
        """Returns whether there is such a file or folder."""
        return self.run("test", "-e", path).returncode == 0 if self.ssh.host else Path(path).exists()

    def read(self, path: str, offset: int = 0) -> bytes:
        """Returns a file's bytes from `offset` on; none if it is not there yet."""
        if self.ssh.host:
            return self.run("tail", "-c", f"+{offset + 1}", path).stdout.encode()
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read()
        except FileNotFoundError:
            return b""

    def read_last_lines(self, path: str, lines: int) -> str:
        """Returns the end of a file; nothing if it is not there yet."""
        return self.run("tail", "-n", str(lines), path).stdout

    def _ssh(self) -> list[str]:
        who = [f"{self.ssh.user}@{self.ssh.host}" if self.ssh.user else self.ssh.host]
        key = ["-i", self.ssh.identity] if self.ssh.identity else []
        return ["ssh", "-o", "BatchMode=yes", "-p", str(self.ssh.port), *key, *who, "--"]


def login_of(record: JobRecord) -> Login:
    """Returns where a job was submitted."""
    return Login(
        ssh=SshConfig(host=record.host, user=record.user, port=record.port, identity=record.identity)
    )
