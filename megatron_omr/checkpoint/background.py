"""Runs a function in a copy of this process, which keeps what the original changes meanwhile.

A fork shares memory until one of the two writes to it: on a CPU a copy of any size is made in a moment.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing as mp
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from data_pipeline.failures import call_or_fail

_PR_SET_PDEATHSIG = 1


class BackgroundCall:
    """A function that runs in a forked process, which ends with this one in whatever way.

    It may not touch a GPU, use several threads of torch, or take part in collectives.
    """

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        """Starts it; `name` says in errors what runs."""
        self._name = name
        # what it holds stays allocated: pinned memory is not copied on write, and would be used again
        self._call: Callable[[], None] | None = call
        self._reader, writer = mp.Pipe(duplex=False)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _run_and_exit(name, call, writer, parent)
        writer.close()

    def has_ended(self) -> bool:
        """Returns true when the function has returned; raises as wait()."""
        if not self._reader.closed and self._reader.poll():
            self.wait()
        return self._reader.closed

    def wait(self) -> None:
        """Waits until the function has returned.

        Raises:
            OSError: it raised one, with its message; as ChildProcessError, its process was killed.
            RuntimeError: it raised something else.
        """
        if self._reader.closed:
            return
        try:
            failure = self._reader.recv()
        except EOFError:
            raise ChildProcessError(
                f"{self._name} was killed (which often means that memory ran out); run the same command again: it "
                "continues from the checkpoint before"
            ) from None
        finally:
            self._reader.close()
            self._call = None
            with suppress(ChildProcessError):  # others in this process may wait for all children
                os.waitpid(self._pid, 0)
        if failure is not None:
            raise OSError(failure.fault) if failure.fault else RuntimeError(failure.message)


def _run_and_exit(name: str, call: Callable[[], None], writer: Any, parent: int) -> None:
    code = 1
    try:
        # The copy has the sockets of the original: while it lives, peers would not see the original's death.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else it died before that
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the original too, which decides
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            gc.disable()  # objects of the original may belong to a GPU
            torch.set_num_threads(1)  # OpenMP's threads were not copied
            writer.send(call_or_fail(name, call))
            code = 0
    finally:
        os._exit(code)
