"""Makes a vLLM engine give back the memory of its device while a trainer uses that, and take it again.

On a GPU by vLLM's sleep mode: keys and values are dropped, the weights go to host memory. vLLM has none for CPUs, where
weights are in host memory anyway: there the memory of keys and values is freed.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from megatron_omr import cpu

Tag = Literal["weights", "kv_cache"]


def fall_asleep(llm: Any) -> None:
    """Frees the device. No request may run, and prefix and encoder caches must be empty."""
    if cpu.device() == "cuda":
        llm.sleep(level=1)
    else:
        llm.collective_rpc(_free_keys_and_values)


def wake_up(llm: Any, tag: Tag) -> None:
    """Brings back the weights, which can then be updated, or after them room for keys and values."""
    if cpu.device() == "cuda":
        llm.wake_up(tags=[tag])
    elif tag == "kv_cache":
        llm.collective_rpc(_clear_keys_and_values)


def _free_keys_and_values(worker: Any) -> None:
    """Runs in a worker of vLLM."""
    storages = {s.data_ptr(): s for s in (t.untyped_storage() for t in worker.model_runner.kv_caches)}
    worker.omr_freed = [(storage, storage.nbytes()) for storage in storages.values()]
    for storage in storages.values():
        storage.resize_(0)


def _clear_keys_and_values(worker: Any) -> None:
    """Runs in a worker of vLLM."""
    for storage, num_bytes in worker.omr_freed:
        storage.resize_(num_bytes)
        torch.empty(0, dtype=torch.uint8).set_(storage).zero_()
    del worker.omr_freed
