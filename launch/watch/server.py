"""Serves live pages over HTTP: only those, to browsers that were given the address.

The address holds a key, since on a shared machine every user can reach loopback. A page of another site that the
browser has open cannot read ours: it does not know the key, its name is refused in the Host header (DNS rebinding), and
nothing allows it to read answers. What a model wrote is escaped where pages are rendered; the content policy runs no
script but the two files of ours, and lets the page connect to nothing else.
"""

from __future__ import annotations

import gzip
import ipaddress
import re
import secrets
import socket
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from data_pipeline.files import to_json
from launch.report.page import TEMPLATES
from launch.watch.index_page import IndexPage
from launch.watch.run_page import RunPage

OWN = Path(__file__).parent / "templates"
FILES = {
    "style.css": (TEMPLATES / "style.css", "text/css"),
    "watch.css": (OWN / "watch.css", "text/css"),
    "page.js": (TEMPLATES / "page.js", "text/javascript"),
    "watch.js": (OWN / "watch.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
LOOPBACK = "127.0.0.1"
MIN_GZIP = 1_000
TIMEOUT = 60
"""Seconds after which a connection that asks nothing is closed."""
RUN_PATH = re.compile(r"run/(\d{1,6})/(.*)", re.ASCII)
IMAGE_PATH = re.compile(r"image/(\d{1,12})/(\d{1,3})/(\d{1,4})", re.ASCII)


class Answer(NamedTuple):
    """What a request gets."""

    body: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK


class WatchServer(ThreadingHTTPServer):
    """The server of some runs, listening once made."""

    daemon_threads = True

    def __init__(self, pages: IndexPage, *, host: str = LOOPBACK, port: int = 0) -> None:
        """Binds to `host` and `port`; 0 takes a free one.

        Raises:
            ValueError: the port is taken, or the host is not of this machine.
        """
        self.key = secrets.token_urlsafe(16)
        self.host = host
        self.names = list_names(host)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), partial(Handler, pages))
        except (OSError, OverflowError) as error:
            raise ValueError(f"host={host} port={port}: {error}; --port 0 takes a free one") from error

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        """The address to open, with the key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/{self.key}/"

    def accepts(self, host: str) -> bool:
        """Returns whether a Host header names this server: as loopback, or as it was told to be reached.

        The port may be another one, that of a tunnel. No site of others is named by an IP address that we listen on.
        """
        name = urlsplit(f"//{host}").hostname or ""
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self.host != LOOPBACK

    def handle_error(self, request: object, client_address: object) -> None:
        """Passes over browsers that have gone away."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests, in a thread for each connection."""

    protocol_version = "HTTP/1.1"
    server: WatchServer
    timeout = TIMEOUT

    def __init__(self, pages: IndexPage, *args: object) -> None:
        self._pages = pages
        super().__init__(*args)  # pyright: ignore[reportArgumentType]

    def version_string(self) -> str:
        return "omr-watch"

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: addresses hold the key."""

    def do_GET(self) -> None:
        try:
            accepted = self.server.accepts(self.headers.get("Host", ""))
        except ValueError:  # no host
            accepted = False
        if not accepted:
            self._send(_text("unknown host; open the address that omr watch prints", HTTPStatus.FORBIDDEN))
            return
        address = urlsplit(self.path)
        key, _, path = address.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(key.encode(), self.server.key.encode()):
            self._send(_text("open the address that omr watch prints, with its key", HTTPStatus.NOT_FOUND))
            return
        self._send(self._find(path, address.query) or _text("there is no such page", HTTPStatus.NOT_FOUND))

    def _find(self, path: str, query: str) -> Answer | None:
        if path in FILES:
            file, kind = FILES[path]
            return Answer(file.read_bytes(), f"{kind}; charset=utf-8")
        if match := RUN_PATH.fullmatch(path):
            page = self._pages.find_run(int(match[1]))
            return _answer_run(page, match[2], query) if page else None
        return _answer(self._pages, path, query)

    def _send(self, answer: Answer) -> None:
        body = answer.body
        packs = len(body) >= MIN_GZIP and "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, compresslevel=1) if packs and answer.kind != "image/png" else body
        self.send_response(answer.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if body is not answer.body:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _answer_run(page: RunPage, path: str, query: str) -> Answer | None:
    if match := IMAGE_PATH.fullmatch(path):
        image = page.find_image(*map(int, match.groups()))
        return Answer(image, "image/png") if image else None
    return _answer(page, path, query)


def _answer(page: IndexPage | RunPage, path: str, query: str) -> Answer | None:
    """Returns a page as a whole, or as JSON its parts that have changed since a revision."""
    if path == "":
        return Answer(page.render().encode(errors="replace"), "text/html; charset=utf-8")
    if path != "parts":
        return None
    since = parse_qs(query).get("since", ["-1"])[0]
    revision, parts = page.refresh().since(int(since) if since.isdecimal() and len(since) < 18 else -1)
    return Answer(to_json({"revision": revision, "parts": parts}).encode(), "application/json")


def _text(text: str, status: HTTPStatus) -> Answer:
    return Answer(text.encode(), "text/plain; charset=utf-8", status)


def list_names(host: str) -> set[str]:
    """Returns the names by which a browser may call the server."""
    names = {"localhost", host.lower()}
    return names if host == LOOPBACK else names | {socket.gethostname().lower(), socket.getfqdn().lower()}


def watch(runs: list[Path], *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves the runs until it is interrupted; says where.

    Raises:
        ValueError: a run is given twice or is a file, there is none, or the port is taken.
    """
    if not runs:
        raise ValueError("no run is given; give folders: omr watch runs/demo")
    for run in runs:
        if run.exists() and not run.is_dir():
            raise ValueError(f"{run} is a file; give the folder of a run, such as runs/demo")
    with WatchServer(IndexPage(runs), host=host, port=port) as server:
        if not ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
            say(f"warning: everyone who reaches {host} and has this address sees the runs, unencrypted")
        for run in runs:
            if not run.is_dir():
                say(f"{run} is not there yet: its page waits for it")
        say(f"watching {', '.join(map(str, runs))} at\n\n    {server.url}\n\nCtrl-C ends it; the runs go on.")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            say("")
