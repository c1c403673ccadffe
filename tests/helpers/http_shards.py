"""Real HTTP servers of a folder, on loopback: with Range requests or without, failing now and then, or slow."""

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
    """What the server does, and what it was asked."""

    ranges: bool = True
    fail_every: int = 0  # each n-th request fails: with a status, a broken connection, or half of the body
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
        said = self.behaviour
        with said.lock:
            said.requests.append(f"{self.path} {self.headers.get('Range', '')}".strip())
            number = len(said.requests)
        time.sleep(said.delay)
        fails = said.fail_every and number % said.fail_every == 0
        if fails and number // said.fail_every % 3 == 0:
            self.send_error(said.status)
            return
        if fails and number // said.fail_every % 3 == 1:
            self.close_connection = True
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and said.ranges:
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
    """The folder's address, and what goes on there."""
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
