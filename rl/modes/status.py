"""Writes RUN/status.json each second, for `omr watch`: the phase of the step, the engines, the newest warnings."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from data_pipeline.files import atomic_writer, to_json, without_nan
from rl.rollout.calls import EngineState
from rl.timer import PhaseTimer

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two writes."""
MAX_WARNINGS = 20
MAX_TEXT = 500
"""Characters of a warning, and of what ended a run, that are written."""


class StatusWriter(logging.Handler):
    """Writes the state of a run from a thread of its own, until it is closed; takes the warnings that are logged.

    Use it as a context manager: what ends the block is written as the end of the run. A file that cannot be written
    (a full disk), or a state that cannot be read, is named once, and does not end the run.
    """

    def __init__(self, run: Path, steps: int) -> None:
        super().__init__(logging.WARNING)
        self.states: Callable[[], Sequence[EngineState]] = tuple
        """Returns the engines' states; set once they are there."""
        self.groups: Callable[[], Mapping[str, int]] = dict
        """Returns how many groups are asked, ready, ...; set by modes that ask ahead."""
        self._path = run / "status.json"
        self._steps = steps
        self._started = time.time()
        self._step, self._phase, self._since = -1, "start", self._started
        self._resumed = 0
        self._warnings = deque[dict[str, object]](maxlen=MAX_WARNINGS)
        self._end: dict[str, object] = {}
        self._can_write = True
        self._closes = threading.Event()
        self._thread = threading.Thread(target=self._work, name="status", daemon=True)

    def __enter__(self) -> StatusWriter:
        logging.getLogger().addHandler(self)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)
        if kind is not None:
            self._end = {"ended": "failed", "reason": f"{kind.__name__}: {error}"[:MAX_TEXT]}
        else:
            done = max(self._step + 1, self._resumed)
            self._end = {"ended": "done" if done >= self._steps else "stopped"}
        self._closes.set()
        self._thread.join()
        self.states = tuple  # they have ended
        self._write()
        self.close()

    def resume(self, steps_done: int) -> None:
        """Says how many steps were done before; a run that has done all is done."""
        self._resumed = steps_done

    def time_step(self, step: int) -> PhaseTimer:
        """Returns the timer of a step, whose phases are shown."""
        self._step = step
        self.enter("")
        return PhaseTimer(self.enter)

    def enter(self, phase: str) -> None:
        """Says what the run does from now on; "" is what no phase explains."""
        self._phase, self._since = phase, time.time()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a warning; called by the logger, in any thread.

        Python prints what no handler takes: that this one takes it must not end that. A record that cannot be formatted
        is reported as other handlers do, and not to the code that logged it.
        """
        try:
            text = record.getMessage()[:MAX_TEXT]
        except Exception:
            self.handleError(record)
            return
        self._warnings.append({"time": record.created, "text": text})
        if logging.lastResort is not None and not self._has_others(record.name):
            logging.lastResort.handle(record)

    def describe(self) -> dict[str, Any]:
        """Returns what is written."""
        with self.lock or nullcontext():
            warnings = list(self._warnings)
        return {
            "time": time.time(),
            "pid": os.getpid(),
            "started": self._started,
            "step": self._step,
            "steps": self._steps,
            "phase": self._phase,
            "phase_since": self._since,
            "engines": [asdict(state) for state in self.states()],
            "groups": dict(self.groups()),
            "warnings": warnings,
            **self._end,
        }

    def _has_others(self, name: str) -> bool:
        """Returns whether another handler takes what this logger logs."""
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False

    def _work(self) -> None:
        while True:
            self._write()
            if self._closes.wait(EVERY):
                return

    def _write(self) -> None:
        try:
            with atomic_writer(self._path) as file:
                file.write(to_json(without_nan(self.describe())).encode())
        except Exception as error:
            if self._can_write:
                log.warning(f"omr watch will not see the state of the run: {type(error).__name__}: {error}")
            self._can_write = False
