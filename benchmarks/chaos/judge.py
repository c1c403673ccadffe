"""A judge for runs that are disturbed: its verdict on an answer is drawn from the answer's digest, so never changes.

    python -m benchmarks.chaos.judge PORT

A run whose judge was lost for one answer, or asked another, ends in other weights.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHARE = 8
"""One answer in so many is called equivalent."""


class JudgeHandler(BaseHTTPRequestHandler):
    """Speaks the part of OpenAI's protocol that data_pipeline/served/client.py uses."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "digest", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        digest = hashlib.sha256(body["messages"][-1]["content"].encode()).digest()
        said = "Equivalent" if digest[0] % SHARE == 0 else "Different"
        message = {"role": "assistant", "content": f"Analysis: by digest.\nJudgment: {said}"}
        self._send({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # as many may connect at once as a client has in flight


if __name__ == "__main__":
    JudgeServer(("127.0.0.1", int(sys.argv[1])), JudgeHandler).serve_forever()
