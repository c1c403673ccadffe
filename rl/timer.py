"""Seconds by phase of one step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Measures named phases; `seconds()` returns them and the time since the timer was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a block; a phase that comes again adds to its seconds."""
        started, name = time.perf_counter(), f"seconds_{name}"
        yield
        self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        return {**self._phases, "seconds_step": time.perf_counter() - self._started}
