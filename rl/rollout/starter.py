"""Starts engines in the place of others, one after another, in a thread of its own.

A place for one may take a minute to find, in which all else goes on.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread
from typing import Generic

from rl.rollout.calls import E

END_SECONDS = 10.0
"""Most time that close() waits for the engine that is being started."""


class Starter(Generic[E]):
    """Calls `start` for each number, and `take` with the number and the engine, or with what `start` raised."""

    def __init__(
        self, start: Callable[[], E], take: Callable[[int, E | BaseException], object], *, threaded: bool
    ) -> None:
        """Takes the functions; `threaded` is false where the caller of start() does it itself, before it goes on."""
        self._start, self._take, self._threaded = start, take, threaded
        self._lock = Lock()  # guards all below; neither function is called with it
        self._numbers: deque[int] = deque()
        self._thread: Thread | None = None
        self._is_closed = False

    def start(self, number: int) -> None:
        """Starts an engine of this number, once, soon."""
        if not self._threaded:
            self._start_one(number)
            return
        with self._lock:
            if self._is_closed or number in self._numbers:
                return
            self._numbers.append(number)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="start-engines", daemon=True)
                self._thread.start()

    def wait(self, seconds: float = math.inf) -> None:
        """Waits until all have been started, or could not be, and `take` has them; no longer than this."""
        deadline = time.monotonic() + seconds
        while (thread := self._thread) and (left := deadline - time.monotonic()) > 0:
            thread.join(left if math.isfinite(left) else None)

    def close(self) -> None:
        """Starts no more; waits a moment for `take` to get the one that is being started."""
        with self._lock:
            self._is_closed = True
            self._numbers.clear()
        if thread := self._thread:
            thread.join(END_SECONDS)

    def _run(self) -> None:
        while (number := self._next()) is not None:
            self._start_one(number)

    def _next(self) -> int | None:
        with self._lock:
            if self._numbers:
                return self._numbers.popleft()
            self._thread = None
            return None

    def _start_one(self, number: int) -> None:
        try:
            found = self._start()
        except BaseException as error:  # whatever it is, `take` decides on it
            found = error
        self._take(number, found)
