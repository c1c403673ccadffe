"""Measures the memory that a call takes, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Returns the most bytes that tensors allocated during `call` hold at once; what exists before does not count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()  # in the order of time
    return max(accumulate(e.nbytes() for e in events if e.name() == "[memory]"), default=0)
