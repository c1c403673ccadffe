"""Weights to send, and reading what was sent."""

from __future__ import annotations

import torch

from rl.weight_sync.manifest import WeightManifest, open_bucket

BUCKET = 4096


def some_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 5), "b": (7,), "large": (3, 5000), "c": (16, 16), "one": (1,), "scalar": ()}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {f"{name}.bf16": tensor.bfloat16() for name, tensor in tensors.items()}


def received(manifest: WeightManifest) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for bucket in manifest.buckets for name, tensor in open_bucket(bucket)}
