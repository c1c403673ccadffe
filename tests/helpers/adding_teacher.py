"""A small teacher on loopback that speaks OpenAI's chat completions and can add, and questions for it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.types import Message, Sample


class AddingTeacher(ThreadingHTTPServer):
    """Responds with the sum of the numbers in a question. Use as a context manager; it listens inside.

    `respond` may make another text of (how often the question was asked before, sum), or a status.
    """

    daemon_threads = True
    request_queue_size = 128  # as many may connect at once as a client has in flight

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.questions: list[str] = []
        self.respond: Callable[[int, int], str | int] = lambda number, total: right(total)
        self.logprob: Callable[[int], float] = lambda number: -1.0
        """Of each token of a response, by how often its question was asked before; a token is a character."""
        self._thread = threading.Thread(target=self.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> AddingTeacher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: AddingTeacher

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": "adder", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.server.questions.append(text)
        total = sum(map(int, re.findall(r"\d+", text)))
        said = self.server.respond(self.server.questions.count(text) - 1, total)
        if isinstance(said, int):
            self._send(said, {"error": {"message": "on demand"}})
        else:
            choice: dict[str, object] = {"message": {"content": said}, "finish_reason": "stop"}
            if body.get("logprobs"):
                logprob = self.server.logprob(self.server.questions.count(text) - 1)
                tokens = [{"token": c, "bytes": list(c.encode()), "logprob": logprob} for c in said]
                choice["logprobs"] = {"content": tokens}
            usage = {"prompt_tokens": len(text), "completion_tokens": len(said)}
            self._send(200, {"choices": [choice], "usage": usage})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def right(total: int) -> str:
    """Returns a response in form."""
    return f"<think>I add.</think><answer>{total}</answer>"


def question(id: str, one: int, other: int, source: str = "sums") -> Sample:
    turns = (
        Message(role="user", content=f"What is {one} + {other}?"),
        Message(role="assistant", content="..."),
    )
    return Sample(id=id, source=source, messages=turns, answer=str(one + other))


def write_questions(folder: Path, start: int, source: str = "sums") -> str:
    """Writes four questions in two shards; their ids do not depend on `start`."""
    samples = [question(f"q{n}", start + n, 1, source) for n in range(4)]
    write_shards(samples, folder, ShardConfig(samples_per_shard=2))
    return str(folder)
