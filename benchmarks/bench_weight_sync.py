"""Weight sync against a plain memory copy: bytes per second through shared memory, checksums included.

One sync is a copy into shared memory and a checksum, then a checksum and a copy out of it: with a checksum as
fast as a copy it costs four copies. vLLM's own loading of the tensors is not measured here. Time is processor time;
rounds alternate between the parts, and the best of each counts, because other work on the machine can only slow it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from time import process_time

import torch
from torch import Tensor

from benchmarks.environment import write_result
from megatron_omr.convert.hf_tensor import HfTensor
from rl.weight_sync.manifest import WeightManifest, open_bucket
from rl.weight_sync.sender import WeightSender

ROUNDS = 10
LAYERS = 12


def main() -> dict[str, object]:
    """Measures, prints and writes benchmarks/results/weight_sync.json; returns its content."""
    torch.set_num_threads(1)
    result: dict[str, object] = {"unit": "GB/s", **measure(transformer_weights())}
    for name, value in result.items():
        print(f"{name:16} {value if isinstance(value, str) else format(value, '10.3f')}")
    write_result("weight_sync", result)
    return result


def measure(source: dict[str, Tensor]) -> dict[str, float]:
    """Returns the best GB/s of each part, and how many plain copies one sync costs."""
    target = {name: torch.empty_like(tensor) for name, tensor in source.items()}
    num_bytes = sum(tensor.nbytes for tensor in source.values())
    tensors = [HfTensor(name=name, shape=tuple(t.shape), precision="bf16") for name, t in source.items()]
    with closing(WeightSender(tensors)) as sender:
        # takes the memory's pages, as the first update does
        manifest = sender.send(source.items(), version=0)
        parts: dict[str, Callable[[], object]] = {
            "copy": lambda: copy(source, target),
            "send": lambda: sender.send(source.items(), version=1),
            "check": lambda: [open_bucket(bucket) for bucket in manifest.buckets],
            "receive": lambda: receive(manifest, target),
        }
        rounds = [{part: spent(run) for part, run in parts.items()} for _ in range(ROUNDS)]
    seconds = {part: min(times[part] for times in rounds) for part in parts}
    assert all(torch.equal(source[name], target[name]) for name in source)
    seconds["sync"] = seconds["send"] + seconds["receive"]
    speeds = {part: num_bytes / time / 1e9 for part, time in seconds.items()}
    return {"megabytes": num_bytes / 1e6, **speeds, "copies per sync": seconds["sync"] / seconds["copy"]}


def transformer_weights() -> dict[str, Tensor]:
    """Returns about 100 MB in bf16, in the shapes of a transformer: large matrices and many small vectors."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "qkv": (1536, 512),
        "o": (512, 512),
        "gate": (2048, 512),
        "up": (2048, 512),
        "down": (512, 2048),
    }
    tensors = {"embed": torch.randn(16_000, 512, generator=generator)}
    for layer in range(LAYERS):
        tensors |= {
            f"{layer}.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()
        }
        tensors |= {
            f"{layer}.{name}": torch.randn(512, generator=generator) for name in ("norm1", "norm2", "bias")
        }
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)


def receive(manifest: WeightManifest, target: dict[str, Tensor]) -> None:
    """Receives as an engine does, without vLLM's own work: checks every byte, then copies into the model."""
    for bucket in manifest.buckets:
        for name, tensor in open_bucket(bucket):
            target[name].copy_(tensor)


def spent(run: Callable[[], object]) -> float:
    """Returns the seconds of processor time."""
    start = process_time()
    run()
    return process_time() - start


if __name__ == "__main__":
    main()
