"""Two steps and a checkpoint, and the step after it in another layout or process: for tests that compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file

from megatron_omr.config import ParallelConfig
from megatron_omr.dtypes import Precision
from tests.helpers.trainers import exported, random_micro_batches, tiny_trainer

if TYPE_CHECKING:
    from megatron_omr.train.trainer import Trainer

STATE = {"loader": {"epoch": 1}, "name": "π"}


class Step(NamedTuple):
    """The step after the checkpoint, on the rank that logs."""

    loss: float
    grad_norm: float
    lr: float


def train_and_save(folder: str, parallel: ParallelConfig, out: str) -> Step:
    """Saves after two steps in OUT/step-00000002, and makes the next one; called on each rank."""
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.train.step import train_step

    trainer = tiny_trainer(folder, parallel)
    for seed in (1, 2):
        train_step(trainer, random_micro_batches(trainer, parallel, seed=seed))
    save_checkpoint(trainer, Path(out), step=2, state=STATE, template=folder, keep=2)
    return next_step(trainer, parallel, out)


def load_and_step(
    folder: str, parallel: ParallelConfig, checkpoint: str, out: str, precision: Precision = "fp32"
) -> tuple[int, Any, Step]:
    """Loads into a trainer that has trained otherwise, and makes the next step; called on each rank."""
    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.train.step import train_step

    trainer = tiny_trainer(folder, parallel, precision=precision)
    train_step(trainer, random_micro_batches(trainer, parallel, seed=9))  # to be overwritten
    step, state = load_checkpoint(trainer, Path(checkpoint))
    return step, state, next_step(trainer, parallel, out)


def next_step(trainer: Any, parallel: ParallelConfig, out: str) -> Step:
    """Writes the weights before and after one more step into OUT."""
    from megatron_omr.train.step import train_step

    before = exported(trainer)
    result = train_step(trainer, random_micro_batches(trainer, parallel, seed=3))
    after = exported(trainer)
    if trainer.ranks.rank == 0:
        save_file(before, f"{out}/before.safetensors")
        save_file(after, f"{out}/after.safetensors")
    return Step(loss=result.loss, grad_norm=result.grad_norm, lr=result.lr)


def check_same_step(wanted: Step, folder: Path, seen: Step, there: Path) -> None:
    """Checks that two runs had equal weights before the step, and made the same step up to rounding."""
    before, after, before_there, after_there = (
        load_file(place / f"{name}.safetensors") for place in (folder, there) for name in ("before", "after")
    )
    assert before.keys() == before_there.keys()
    assert all(tensor.equal(before_there[name]) for name, tensor in before.items())
    # layouts sum in another order: loss and norm differ by 3e-8 and 1.2e-7 in float32
    assert seen.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert seen.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
    assert seen.lr == wanted.lr
    # equal optimizer states make equal updates up to 3e-5, lost ones differ by their size (1); biases of keys have
    # no gradient, so theirs follow rounding
    names = [name for name in after if name.endswith(".weight")]
    gaps = {n: float((after_there[n] - after[n]).norm() / (after[n] - before[n]).norm()) for n in names}
    assert max(gaps.values()) < 2e-2, gaps


def read_whole(run: Path) -> dict[str, Any]:
    """Returns all tensors of a checkpoint of two steps."""
    import torch

    from megatron_omr.checkpoint.metadata import read_metadata
    from megatron_omr.checkpoint.shards import Shard, read_shards

    checkpoint, whole = run / "step-00000002", {}
    metadata = read_metadata(checkpoint)
    for key, found in metadata.state_dict_metadata.items():
        tensor = torch.empty(found.size, dtype=found.properties.dtype)  # pyright: ignore
        size = tuple(tensor.shape)
        place: Any = {"global_shape": size, "offset": (0,) * len(size), "sizes": size}
        read_shards(checkpoint, [Shard(key=key, **place, dtype=tensor.dtype, data=tensor)], metadata)
        whole[key] = tensor
    return whole


def check_loaded(trainer: Trainer, run: Path, wanted: dict[str, Any]) -> None:
    """Loads a checkpoint of two steps; all that this rank holds must be what read_whole returned, to the bit."""
    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.checkpoint.state import optimizer_shards, optimizer_step, weight_shards
    from megatron_omr.train.trainer import unwrap_chunks

    for shard in optimizer_shards(trainer, with_copies=True):
        shard.tensor().fill_(-1)
    assert load_checkpoint(trainer, run / "step-00000002") == (2, {})
    assert optimizer_step(trainer) == 2 and trainer.scheduler.num_steps == 2
    weights = weight_shards(unwrap_chunks(trainer))
    for shard in [*weights, *optimizer_shards(trainer, with_copies=True)]:
        place = tuple(slice(o, o + s) for o, s in zip(shard.offset, shard.sizes, strict=True))
        assert shard.tensor().equal(wanted[shard.key][place]), f"{shard.key} from {run}"
