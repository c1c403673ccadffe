"""Serves a folder over http on loopback: with or without Range requests, with faults, or slowly."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(kw_only=True)
class Behaviour:
    """The faults of the server, and the requests that it received."""

    ranges: bool = True
    fail_every: int = 0  # each n-th request fails: by status, closed connection, or half of the body
    status: int = 503
    delay: float = 0.0  # seconds before each answer
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args, behaviour: Behaviour, **kwargs) -> None:
        self.behaviour = behaviour
        super().__init__(*args, **kwargs)

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        behaviour = self.behaviour
        with behaviour.lock:
            behaviour.requests.append(f"{self.path} {self.headers.get('Range', '')}".strip())
            number = len(behaviour.requests)
        time.sleep(behaviour.delay)
        fails = behaviour.fail_every and number % behaviour.fail_every == 0
        if fails and number // behaviour.fail_every % 3 == 0:
            self.send_error(behaviour.status)
            return
        if fails and number // behaviour.fail_every % 3 == 1:
            self.close_connection = True
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and behaviour.ranges:
            if int(asked[1]) >= len(data):
                self.send_error(416)
                return
            data, status = data[int(asked[1]) : int(asked[2]) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fails else data)
        self.close_connection = bool(fails)


@contextmanager
def serve(folder: Path, **options) -> Iterator[tuple[str, Behaviour]]:
    """Serves the folder; yields its address and the server's behaviour."""
    behaviour = Behaviour(**options)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder), behaviour=behaviour)
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
