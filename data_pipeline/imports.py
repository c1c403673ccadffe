"""Imports of heavy packages without the passes of garbage collection that they would set off."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pauses garbage collection while packages are imported inside, and leaves their objects out of later passes.

    They stay as long as the process does: passes over all of them take a fifth of the time of such an import.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
