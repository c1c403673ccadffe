"""Serves a model by vLLM's OpenAI server in a process of its own, while a teacher is asked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START_TIMEOUT = 300  # seconds
STOP_TIMEOUT = 30
LOG_SHOWN = 4_000  # characters
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with the executor uni: one process instead of three
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
OPTIONS = (
    *("--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "128"),
    *("--block-size", "32", "--enforce-eager", "--distributed-executor-backend", "uni"),
    # a seeded request whose prompt is read in several parts ends vLLM's engine on a CPU
    *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"),
    *("--kv-cache-memory-bytes", str(2**29), "--disable-uvicorn-access-log"),
)


@contextmanager
def serve(model: Path, log: Path) -> Iterator[str]:
    """Yields the base URL of a server of `model`, which ends with the block. Its output goes to `log`.

    Raises:
        OSError: it ended, or is not ready after START_TIMEOUT seconds. The end of `log` is printed before this and
            a command that failed in the block.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), *OPTIONS],
            env=os.environ | ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # what it starts ends with it
        )
    try:
        _wait(process, port)
        yield f"http://127.0.0.1:{port}/v1"
    except (OSError, subprocess.CalledProcessError):
        print(f"the end of {log}:\n{log.read_text(errors='replace')[-LOG_SHOWN:]}", file=sys.stderr)
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen, port: int) -> None:
    until = time.monotonic() + START_TIMEOUT
    while time.monotonic() < until:
        if process.poll() is not None:
            raise OSError(f"the teacher's server ended with {process.returncode}")
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(0.3)
    raise OSError(f"the teacher's server was not ready in {START_TIMEOUT} s")
