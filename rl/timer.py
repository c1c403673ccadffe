"""Seconds by phase of one step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Measures named phases; `seconds()` returns them and the time since the timer was made."""

    def __init__(self, on_phase: Callable[[str], None] = lambda name: None) -> None:
        """Starts the timer of a step.

        Args:
            on_phase: is told a phase that begins, and "" when it has ended.
        """
        self._started = time.perf_counter()
        self._phases: dict[str, float] = {}
        self._on_phase = on_phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a block; a phase that comes again adds to its seconds."""
        self._on_phase(name)
        started, name = time.perf_counter(), f"seconds_{name}"
        yield
        self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - started
        self._on_phase("")

    def seconds(self) -> dict[str, float]:
        return {**self._phases, "seconds_step": time.perf_counter() - self._started}
