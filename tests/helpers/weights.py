"""Weights to send, sending them, and reading what was sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

import torch

from megatron_omr.convert.hf_tensor import HfTensor
from megatron_omr.dtypes import precision_of
from rl.weight_sync.manifest import WeightManifest, open_bucket
from rl.weight_sync.sender import WeightSender

BUCKET = 4096


def some_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 5), "b": (7,), "large": (3, 5000), "c": (16, 16), "one": (1,), "scalar": ()}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {f"{name}.bf16": tensor.bfloat16() for name, tensor in tensors.items()}


def describe(weights: Iterable[tuple[str, torch.Tensor]]) -> list[HfTensor]:
    """Returns the plan of sending these tensors."""
    return [
        HfTensor(name=name, shape=tuple(tensor.shape), precision=precision_of(tensor.dtype, of=name))
        for name, tensor in weights
    ]


@contextmanager
def sent(
    weights: Iterable[tuple[str, torch.Tensor]], version: int, *, bucket_bytes: int = BUCKET
) -> Iterator[WeightManifest]:
    """Sends tensors as if they had been planned; they are in shared memory until the block ends."""
    weights = list(weights)
    with closing(WeightSender(describe(weights), bucket_bytes=bucket_bytes)) as sender:
        yield sender.send(weights, version)


def received(manifest: WeightManifest) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for bucket in manifest.buckets for name, tensor in open_bucket(bucket)}
