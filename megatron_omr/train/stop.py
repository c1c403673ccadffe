"""Stops a run ahead of a time limit: SIGUSR1 asks for it, and the run ends its step, saves and exits with RESUMABLE.

Batch schedulers send the signal to every process of a job. It is blocked from the start on, so that it waits until the
run looks for it, and so that the processes that the run starts (Ray, engines, checkpoint writers), which inherit that,
do not die of it. Standard library only: the command line imports it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

RESUMABLE = 75
"""Exit code of a run that stopped early and continues with the same command (EX_TEMPFAIL of sysexits.h)."""
STOP_SIGNAL = signal.SIGUSR1


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self._seen = False

    def is_made(self) -> bool:
        """Returns true once the signal has come."""
        return self._seen or STOP_SIGNAL in signal.sigpending()

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal where a thread got it that a library started before it was blocked."""
        self._seen = True


_held: list[StopRequest] = []  # of the blocks that this process is in


@contextmanager
def hold_stop() -> Iterator[StopRequest]:
    """Keeps the signal from ending this process, and the ones it starts; gives what tells whether it has come.

    Blocks within blocks share one request. Only a main thread may set handlers; in others the signal is blocked alone.
    """
    request = _held[-1] if _held else StopRequest()
    _held.append(request)
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(STOP_SIGNAL, request.note) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [STOP_SIGNAL])
    try:
        yield request
    finally:
        if request.is_made() and STOP_SIGNAL not in mask:
            signal.sigtimedwait([STOP_SIGNAL], 0)  # it was heeded: what comes next shall not die of it
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None:
            signal.signal(STOP_SIGNAL, handler)
        _held.pop()


@contextmanager
def stop_exits() -> Iterator[None]:
    """Turns the signal into SystemExit(RESUMABLE), for commands that lose little; only a main thread may do so.

    What comes again while the command ends is ignored, so that it ends all it started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    is_leaving = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal is_leaving
        if is_leaving:
            return
        is_leaving = True
        # not sys.stderr, whose buffer refuses to be entered where the signal interrupts a write
        os.write(2, f"omr: stopped by {STOP_SIGNAL.name}; the same command continues\n".encode())
        raise SystemExit(RESUMABLE)

    handler = signal.signal(STOP_SIGNAL, leave)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [STOP_SIGNAL])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(STOP_SIGNAL, handler)


def exit_resumable(done: str, *, says: bool = True) -> NoReturn:
    """Ends this process with RESUMABLE; for every rank, once the checkpoint is complete.

    From here on SIGTERM is ignored: srun sends it when the first rank has ended with an error, and all shall end with
    this one.

    Args:
        done: what was saved, for the line that the rank which `says` it writes.

    Raises:
        SystemExit: always.
    """
    if says:
        print(
            f"omr: stopped by {STOP_SIGNAL.name}: {done}; the same command continues",
            file=sys.stderr,
            flush=True,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(RESUMABLE)
