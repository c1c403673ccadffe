"""Digests of the tensors of a model, to see which of them changed. Imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xxhash

from megatron_omr.convert.tensor_file import as_bytes


def digest_model(model: torch.nn.Module) -> dict[str, str]:
    """Returns the xxh3 of the bytes of each parameter and buffer, by name, also of what is packed for a kernel."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: xxhash.xxh3_64(as_bytes(tensor.cpu())).hexdigest() for name, tensor in tensors if tensor.numel()
    }


def digest_worker(worker: Any) -> dict[str, str]:
    """Returns digest_model of a vLLM worker's model; to be called in the worker."""
    return digest_model(worker.model_runner.get_model())


def join_ranks(by_rank: list[Mapping[str, str]]) -> dict[str, str]:
    """Returns the digests of all processes of an engine; with several, names begin with the process's number."""
    if len(by_rank) == 1:
        return dict(by_rank[0])
    return {f"rank {rank}: {name}": value for rank, own in enumerate(by_rank) for name, value in own.items()}
