"""Measures the memory that a call takes, by torch's own accounting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Returns the most bytes that tensors allocated during `call` hold at once; what exists before does not count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()  # in the order of time
    return max(accumulate(e.nbytes() for e in events if e.name() == "[memory]"), default=0)


def saved_bytes(call: Callable[[], object], *, skip: Iterable[Tensor] = ()) -> int:
    """Returns the bytes that autograd keeps for the backward pass of `call`, a forward pass.

    Each storage counts once and whole. Those of `skip`, which are the parameters, do not count.
    """
    known = {t.untyped_storage().data_ptr() for t in skip}
    kept: list[Tensor] = []  # alive until the end: no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            kept.append(tensor.detach())
        return tensor.detach()  # the tensor itself would be a reference cycle

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = call()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)
