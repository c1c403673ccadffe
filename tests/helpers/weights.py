"""Weights to send, sending them, and reading what was sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

import torch

from megatron_omr.convert.hf_tensor import HfTensor
from megatron_omr.dtypes import precision_of
from rl.config import EngineConfig
from rl.weight_sync.collective import CollectiveSender
from rl.weight_sync.layout import ALIGNMENT, WeightError, lay_out
from rl.weight_sync.sender import open_sender as open_any_sender
from rl.weight_sync.shared_memory import SharedMemoryReader, SharedMemorySender, SharedPlace

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


def open_sender(
    weights: Iterable[tuple[str, torch.Tensor]], *, bucket_bytes: int = BUCKET, timeout: float = 2.0
) -> SharedMemorySender:
    return SharedMemorySender(lay_out(describe(weights), bucket_bytes), timeout=timeout)


@contextmanager
def sent(
    weights: Iterable[tuple[str, torch.Tensor]], version: int, *, bucket_bytes: int = BUCKET
) -> Iterator[SharedPlace]:
    """Sends tensors as if they had been planned; they are in shared memory until the block ends."""
    weights = list(weights)
    with closing(open_sender(weights, bucket_bytes=bucket_bytes)) as sender:
        sender.send(weights, version)
        yield sender.place


def received(place: SharedPlace, version: int) -> dict[str, torch.Tensor]:
    with closing(SharedMemoryReader(place)) as reader:
        found = {name: tensor.clone() for name, tensor in reader.receive(version)}
        reader.confirm(version)
    return found


def update_engine(engine: Any, place: Any, version: int) -> None:
    """Gives an Engine of this process the weights at a place."""
    engine.join_transfer(asdict(place))
    engine.update_weights(version)


class LocalTrainers:
    """A trainer of one rank, in this process, with the methods of TrainerGroup that a transfer calls."""

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]], config: EngineConfig) -> None:
        self.weights, self.sent = list(weights), 0
        self.sender = open_any_sender(config, describe(self.weights), "127.0.0.1")

    def check_alive(self) -> None:
        pass

    def open_sender(self) -> dict[str, Any]:
        return asdict(self.sender.place)

    def join_engines(self, generation: int, num_ranks: int) -> str:
        assert isinstance(self.sender, CollectiveSender)
        return self._try(lambda: self.sender.join(generation, num_ranks))

    def send_weights(self, version: int) -> str:
        self.sent += 1
        return self._try(lambda: self.sender.send(self.export(), version))

    def export(self) -> Iterable[tuple[str, torch.Tensor]]:
        return self.weights

    def _try(self, call: Callable[[], None]) -> str:
        try:
            call()
        except WeightError as error:
            return str(error)
        return ""


def open_memory(place: SharedPlace) -> torch.Tensor:
    """Returns the buckets' memory, to be changed behind the sender's back."""
    header = ALIGNMENT
    size = header + place.layout.num_bytes
    return torch.from_file(place.path, shared=True, size=size, dtype=torch.uint8)[header:]
