"""Moves a trainer between steps from the device to host memory and back, so that others may use the device meanwhile.

Storages are emptied and filled in place: weights, their buffers and the optimizer's states stay the same objects, with
the same views of each other. Gradients, which each step begins with zeros, are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megatron_omr import cpu
from megatron_omr.train.optimizer import list_buffers
from megatron_omr.train.trainer import Trainer, unwrap_chunks

Kind = Literal["weights", "optimizer", "gradients"]
EVERYTHING: tuple[Kind, ...] = ("weights", "optimizer", "gradients")
"""In the order in which a tensor that belongs to two is counted: in fp32 the optimizer steps the weights themselves."""


class _Moved(NamedTuple):
    """A storage without memory, and what it held; None for gradients."""

    storage: torch.UntypedStorage
    num_bytes: int
    content: Tensor | None


class Offload:
    """Decides which tensors of a trainer are on its device."""

    def __init__(self, trainer: Trainer, others: Callable[[], Iterable[Tensor]] = tuple) -> None:
        """Moves nothing yet.

        Args:
            others: returns tensors on the device that go with the optimizer's states, such as a reference's weights.
        """
        self._trainer, self._others = trainer, others
        self._away: dict[Kind, list[_Moved]] = {}

    @property
    def freed(self) -> dict[Kind, int]:
        """Bytes of the device that are free because what they held is away."""
        return {kind: sum(moved.num_bytes for moved in away) for kind, away in self._away.items()}

    @torch.no_grad()
    def keep(self, kinds: Collection[Kind]) -> None:
        """Leaves these kinds on the device, or brings them back bit for bit, and frees it of the others.

        Collective with parallel.overlap, if the weights are on the device: it ends the gathers of the last step.
        """
        leaving: list[Kind] = [kind for kind in EVERYTHING if kind not in kinds and kind not in self._away]
        if leaving:
            if "weights" not in self._away:
                unwrap_chunks(self._trainer)
            here = dict(self._storages())
            for kind in leaving:
                self._away[kind] = [_empty(storage, keeps=kind != "gradients") for storage in here[kind]]
            torch.cuda.empty_cache()  # for other processes; without CUDA it does nothing
        for kind in kinds:
            for moved in self._away.pop(kind, ()):
                _fill(moved)

    def check_here(self, what: str, kinds: Collection[Kind] = EVERYTHING) -> None:
        """Raises RuntimeError where one of these kinds is away; `what` says what needs them."""
        if missing := [kind for kind in kinds if kind in self._away]:
            raise RuntimeError(
                f"{what} needs the trainer's {' and '.join(missing)} on its device, and they are away while engines "
                "use it; bring them back first"
            )

    def _storages(self) -> Iterator[tuple[Kind, list[torch.UntypedStorage]]]:
        """Yields the storages of each kind, each storage once."""
        seen = set[int]()
        for kind in EVERYTHING:
            found: list[torch.UntypedStorage] = []
            for tensor in self._tensors(kind):
                storage = tensor.untyped_storage()
                if storage.nbytes() and tensor.device.type == cpu.device() and storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    found.append(storage)
            yield kind, found

    def _tensors(self, kind: Kind) -> Iterator[Tensor]:
        buffers = list_buffers(self._trainer.chunks)
        if kind == "gradients":
            yield from (buffer.grad_data for buffer in buffers)
        elif kind == "weights":
            yield from (buffer.param_data for buffer in buffers)
            yield from (parameter for chunk in self._trainer.chunks for parameter in chunk.parameters())
        else:
            for part in self._trainer.optimizer.chained_optimizers:
                yield from _list_states(part.optimizer)
            yield from self._others()


def _list_states(optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    """Yields the weights that an optimizer steps, and its states; there is none on a stage that is frozen."""
    if optimizer is None:
        return
    yield from (weight for group in optimizer.param_groups for weight in group["params"])
    states = (value for state in optimizer.state.values() for value in state.values())
    yield from (value for value in states if isinstance(value, Tensor))


def _empty(storage: torch.UntypedStorage, *, keeps: bool) -> _Moved:
    num_bytes = storage.nbytes()
    content = cpu.copy_to_host(_bytes(storage)) if keeps else None
    storage.resize_(0)
    return _Moved(storage, num_bytes, content)


def _fill(moved: _Moved) -> None:
    moved.storage.resize_(moved.num_bytes)
    data = _bytes(moved.storage)
    data.zero_() if moved.content is None else data.copy_(moved.content)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    """Returns a view of a whole storage, [bytes] uint8."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
