"""A real vLLM server of a tiny model on loopback, in processes of its own that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ENV = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with the executor uni: one process less to start
}
OPTIONS = """--host 127.0.0.1 --served-model-name tiny --dtype float32 --max-model-len 2048 --max-num-seqs 16
    --max-num-batched-tokens 2048 --no-enable-chunked-prefill --enforce-eager --skip-mm-profiling --block-size 32
    --mm-processor-cache-gb 0 --kv-cache-memory-bytes 134217728 --distributed-executor-backend uni
    --disable-uvicorn-access-log"""
START_TIMEOUT = 240  # seconds


class ModelServer:
    def __init__(self, model: Path, log: Path) -> None:
        self.port = free_port()
        self._model, self._log = model, log
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server's processes; wait_until_ready waits for them."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), *OPTIONS.split()],
                env=os.environ | ENV,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its engine is killed with it
            )

    def wait_until_ready(self) -> None:
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until:
            assert self._process.poll() is None, self._log.read_text()[-4_000:]
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise AssertionError(f"no server within {START_TIMEOUT} s:\n{self._log.read_text()[-4_000:]}")

    def kill(self) -> None:
        """SIGKILL to the server and its engine at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
