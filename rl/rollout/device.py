"""What vLLM is started with on its device, and how it leaves that to a trainer, and takes it again.

It leaves a GPU by vLLM's sleep mode: keys and values are dropped, the weights go to host memory. vLLM has none for
CPUs, where weights are in host memory anyway: there the memory of keys and values is freed.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from megatron_omr import cpu
from rl.config import EngineConfig
from rl.routing.record import TakeExperts, start_recording, take_returned

Tag = Literal["weights", "kv_cache"]


def hardware_settings(config: EngineConfig, *, sleeps: bool, records_routing: bool) -> dict[str, Any]:
    """Returns arguments of vLLM's LLM.

    Args:
        sleeps: whether the engine is to leave its GPU to a trainer, and come back.
        records_routing: whether record_routing() follows.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enforce_eager": config.eager,
            "enable_sleep_mode": sleeps,
            **({"enable_return_routed_experts": True} if records_routing else {}),
        }
    return {
        "kv_cache_memory_bytes": int(config.cpu_kv_cache_gib * 2**30),
        "enforce_eager": True,
        "skip_mm_profiling": True,  # it would run the vision tower on the largest image
        # vLLM rewinds the generator of a seeded request whose prompt it cuts, which CPU generators cannot do
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(2048, config.max_model_len),
        # only whole blocks are shared by the responses to one prompt: 128, the default, exceeds short prompts
        "block_size": 32,
        # tokens whose keys and values are found are not routed again
        **({"enable_prefix_caching": False} if records_routing else {}),
    }


def record_routing(llm: Any) -> TakeExperts:
    """Begins to record the experts of tokens; returns the function that takes those of a finished request.

    On GPUs vLLM returns them with a response. Its CPU build refuses to; there they are taken from its routers.
    """
    return take_returned if cpu.device() == "cuda" else start_recording(llm)


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
