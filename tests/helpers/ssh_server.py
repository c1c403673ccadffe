"""An SSH server on this machine for one key, which runs the commands that it is sent: a login node for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import paramiko

HOST_KEY = paramiko.RSAKey.generate(2048)


class Session(paramiko.ServerInterface):
    """One connection; each command runs in bash, with its input and output on its channel."""

    def __init__(self, key: paramiko.PKey, env: Mapping[str, str]) -> None:
        self._key, self._env = key, env

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL if key == self._key else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        return False

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._run, args=(channel, command.decode()), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, command: str) -> None:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            ["bash", "-c", command], env=dict(self._env), cwd="/", stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert process.stdin and process.stdout and process.stderr
        threading.Thread(target=_feed, args=(channel, process.stdin), daemon=True).start()
        errors = threading.Thread(target=_drain, args=(process.stderr, channel.sendall_stderr))
        errors.start()
        _drain(process.stdout, channel.sendall)
        errors.join()
        channel.send_exit_status(process.wait())
        channel.close()


def _feed(channel: paramiko.Channel, into: IO[bytes]) -> None:
    with into:
        while data := channel.recv(65_536):
            os.write(into.fileno(), data)


def _drain(source: IO[bytes], send) -> None:
    while data := os.read(source.fileno(), 65_536):
        send(data)


@contextmanager
def start_ssh_server(folder: Path, env: Mapping[str, str]) -> Iterator[tuple[int, Path, Path]]:
    """Serves one key, with the environment `env` for commands.

    Yields:
        The port, the private key, and a folder for the front of PATH whose `ssh` takes the server's key as known.
    """
    key, tools = folder / "key", folder / "tools"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    tools.mkdir()
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    (tools / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F /dev/null {options} "$@"\n')
    (tools / "ssh").chmod(0o755)
    private = paramiko.Ed25519Key.from_private_key_file(str(key))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_accept, args=(listening, private, env), daemon=True).start()
        yield listening.getsockname()[1], key, tools


def _accept(listening: socket.socket, key: paramiko.PKey, env: Mapping[str, str]) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:  # the server is closed
            return
        transport = paramiko.Transport(connection)
        transport.add_server_key(HOST_KEY)
        transport.start_server(event=threading.Event(), server=Session(key, env))
