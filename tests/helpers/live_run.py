"""Writes the files of a run as it goes: a step, a status, a resumed run; and serves pages of runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.watch.index_page import IndexPage
from launch.watch.server import WatchServer
from megatron_omr.train.metrics import JsonLines
from tests.helpers.report_run import logged_more, rl_row, write_json, write_run


class LiveRun:
    """A run of RL in `folder`, with the files that the loop writes, by the classes that write them."""

    def __init__(self, folder: Path, *, steps: int = 60) -> None:
        whole = write_run(folder.parent / f"{folder.name}-whole")
        self.folder = folder
        self._steps = steps
        lines = (whole / "rl/rollouts.jsonl").read_text().splitlines()
        self._groups: list[dict[str, object]] = [json.loads(line) for line in lines]
        self._config = json.loads((whole / "rl/config.json").read_text()) | {
            "steps": steps,
            "sampling": {"n": 8},
        }

    def start(self, first_step: int = 0, **config: object) -> None:
        """Begins, or resumes after a checkpoint of `first_step` steps."""
        write_json(self.folder / "config.json", self._config | config)
        self._metrics = JsonLines(self.folder / "metrics.jsonl", first_step=first_step)
        self._rollouts = JsonLines(self.folder / "rollouts.jsonl", first_step=first_step)

    def step(self, step: int, **values: float) -> None:
        """Ends a step."""
        self._metrics.write(step, rl_row(step) | logged_more(step) | {"step": step} | values)
        for number in range(2):
            self._rollouts.write(step, self._groups[(2 * step + number) % len(self._groups)] | {"step": step})

    def report(self, step: int, *, age: float = 0.0, **values: object) -> None:
        """Writes the status of a run in the phase `generate`, as rl/modes/status.py does."""
        now = time.time() - age
        engine = {
            "address": "10.0.0.1:4000",
            "prompts": 3,
            "running": 12,
            "tokens": 5000,
            "tokens_per_second": 321.0,
        }
        status = {
            "time": now,
            "pid": 1,
            "started": now - 100,
            "step": step,
            "steps": self._steps,
            "phase": "generate",
            "phase_since": now - 2,
            "engines": [
                engine | {"number": 0, "state": "generating", "version": step},
                engine | {"number": 1, "state": "idle", "version": step - 1},
            ],
            "groups": {"ready": 4, "asked": 16},
            "warnings": [{"time": now, "text": "nothing was learned <b>"}],
        }
        write_json(self.folder / "status.json", status | values)


@contextmanager
def serving(*runs: Path, host: str = "127.0.0.1") -> Iterator[WatchServer]:
    """Serves the runs from a thread of this process."""
    with WatchServer(IndexPage(runs), host=host) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
