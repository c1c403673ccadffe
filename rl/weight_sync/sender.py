"""The trainer's end of a way of transfer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from megatron_omr.convert.hf_tensor import HfTensor
from rl.config import EngineConfig
from rl.weight_sync.collective import CollectivePlace, CollectiveSender
from rl.weight_sync.layout import lay_out
from rl.weight_sync.shared_memory import SharedMemorySender, SharedPlace


class Sender(Protocol):
    """Runs in the trainer's rank 0; the other ranks take part in the export alone."""

    @property
    def place(self) -> SharedPlace | CollectivePlace:
        """The address that engines receive from."""
        ...

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None: ...

    def close(self) -> None: ...


def open_sender(config: EngineConfig, tensors: Sequence[HfTensor], host: str) -> Sender:
    """Returns the sender of `config.weight_transfer` for these tensors, such as those of an ExportPlan.

    Args:
        host: this machine's address on the network that it shares with the engines.
    """
    layout = lay_out(tensors)
    if config.weight_transfer == "collective":
        return CollectiveSender(layout, host=host, timeout=config.transfer_timeout)
    return SharedMemorySender(layout, timeout=config.transfer_timeout)
