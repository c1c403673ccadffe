"""Weight-transfer backends for vLLM: load the trainer's weights while they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rl.weight_sync import collective, shared_memory
from rl.weight_sync.layout import WeightError

BACKENDS = {"shared_memory": "omr_shared_memory", "collective": "omr_collective"}
"""vLLM's names of the values of `engine.weight_transfer`."""


@dataclass
class InitInfo(WeightTransferInitInfo):
    """A place as a dict: it may come through msgpack, which knows no dataclasses."""

    place: dict[str, Any] = field(default_factory=dict)


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    version: int = 0


class Reader(Protocol):
    """The receiving end of a way of transfer."""

    def receive(self, version: int) -> Iterator[tuple[str, Tensor]]: ...

    def confirm(self, version: int) -> None: ...

    def close(self) -> None: ...


class Receiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Runs inside each vLLM worker. Names and shapes were compared before: see Engine.join_transfer."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    reader: Reader | None = None

    def open_reader(self, place: dict[str, Any]) -> Reader:
        raise NotImplementedError

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        self.shutdown()
        self.reader = self.open_reader(init_info.place)

    def start_weight_update(self) -> None:
        forget_packed_experts(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # the base class waits for the accelerator here; finish_weight_update does
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Loads each tensor as it arrives.

        Raises:
            WeightError: not all arrived; the model has some new weights, and can be given all of them again.
        """
        if self.reader is None:
            raise WeightError("no place to read weights from; call init_weight_transfer_engine first")
        try:
            self.model.load_weights(self.reader.receive(update_info.version))
            self._finish(update_info.version)
        except BaseException:
            # layers that wait for more tensors would count those of the next update to the ones they have
            finalize_layerwise_reload(self.model, self.model_config)
            raise

    def _finish(self, version: int) -> None:
        """Ends the update here: once it failed in finish_weight_update, vLLM would refuse another one."""
        assert self.reader is not None
        finalize_layerwise_reload(self.model, self.model_config)  # some layers copy their tensors only now
        self.reader.confirm(version)
        if is_tied(self.model):
            refresh_tied_heads(self.model)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        """Does nothing: receive_weights did."""

    def shutdown(self) -> None:
        if self.reader is not None:
            self.reader.close()
        self.reader = None

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """vLLM up to 0.26 requires this method; the trainer has senders of its own."""
        raise WeightError("send weights with a sender of rl.weight_sync")


class SharedMemoryReceiver(Receiver):
    """Reads shared memory of a trainer on this machine."""

    def open_reader(self, place: dict[str, Any]) -> Reader:
        return shared_memory.SharedMemoryReader(shared_memory.read_place(place))


class CollectiveReceiver(Receiver):
    """Takes part in the trainer's broadcasts."""

    def open_reader(self, place: dict[str, Any]) -> Reader:
        return collective.CollectiveReader(collective.read_place(place), rank=self.parallel_config.rank)


def forget_packed_experts(model: torch.nn.Module) -> None:
    """Makes vLLM's CPU build pack the experts of an update for its kernel, as it did when it loaded the model.

    Where it finds the kernel that it made then, it copies an update into the packed weights as it comes. The engine
    would go on with wrong weights, without an error.
    """
    if torch.accelerator.is_available():
        return
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts  # not of older versions

    for module in model.modules():
        if isinstance(module, RoutedExperts):
            module.quant_method.moe_kernel = None


def is_tied(model: torch.nn.Module) -> bool:
    return model.config.get_text_config().tie_word_embeddings


def refresh_tied_heads(model: torch.nn.Module) -> None:
    """Updates output heads that are tied to the embedding.

    vLLM's CPU build multiplies by a packed copy of the head's weight, made when weights are loaded. An update
    holds no weight for a tied head, so its copy would keep the older weights.
    """
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)


def register() -> None:
    """Registers the backends with vLLM in this process, once; also vLLM's plugin entry for its own workers."""
    receivers = {"shared_memory": SharedMemoryReceiver, "collective": CollectiveReceiver}
    for way, backend in BACKENDS.items():
        if backend not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(backend, receivers[way])
