"""A trainer that is moved to host memory and back: what is freed, and that training goes on bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_omr.config import CheckpointConfig, ParallelConfig
from tests.conftest import make_tiny
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported, random_micro_batches

ONE = ParallelConfig()


@pytest.mark.heavy
def test_offloaded_trainer_frees_its_memory_and_goes_on_bit_for_bit(
    tiny_tied_hf: Path, tmp_path: Path
) -> None:
    """In bf16 with a frozen tower and a reference on the device; with chunks and overlap: test_overlap."""
    larger = make_tiny(tmp_path / "model", tied=True, hidden_size=384, intermediate_size=1536)
    (seen,) = run_ranks(_move_about, 1, str(tiny_tied_hf), str(larger), str(tmp_path / "checkpoints"))
    freed, planned = seen["freed"], seen["planned"]
    assert freed == {
        "weights": planned.weights,
        "optimizer": planned.optimizer + planned.reference,
        "gradients": planned.gradients,
    }
    assert seen["of SYNC"] == {name: freed[name] for name in ("optimizer", "gradients")}
    # a CPU keeps in its memory what is away, but for gradients
    fell, gradients = seen["of the process"]
    assert gradients > 2**24 and 0.9 * gradients < fell < 1.2 * gradients
    assert seen["equal"] == {"after two moves": True, "from the checkpoint": True}
    assert "training needs the trainer's weights and optimizer and gradients on its device" in seen["refusal"]


def _move_about(folder: str, larger: str, checkpoints: str) -> dict[str, Any]:
    import torch

    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.checkpoint.save import CheckpointWriter
    from megatron_omr.convert.tensor_file import as_bytes
    from megatron_omr.plan.weights import Chunk, count_static, list_parameters
    from megatron_omr.swap.offload import EVERYTHING, Offload
    from megatron_omr.swap.reference import Reference
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    ranks, optim = init_ranks(ONE), replace(OPTIM, freeze=("vision",))
    still, trainer, resumed = (
        build_trainer(folder, ONE, ranks, optim, precision="bf16", steps=8) for _ in range(3)
    )
    reference = Reference(trainer.chunks, "device")
    offload, seen = Offload(trainer, reference.on_device), {}

    def train(which: Any, step: int) -> float:
        return train_step(which, random_micro_batches(which, ONE, seed=step)).loss

    def same(other: Any) -> bool:
        """After a step of both."""
        losses = train(still, 2) == train(other, 2)
        ours, theirs = exported(still), exported(other)
        return losses and all(torch.equal(ours[name], theirs[name]) for name in ours)

    for which in (still, trainer):
        train(which, 1)
    for parameter in trainer.chunks[0].parameters():
        as_bytes(parameter)  # as when they were sent
    writer = CheckpointWriter(trainer, Path(checkpoints), CheckpointConfig(), template=folder)
    writer.save(1, {})
    offload.keep(())  # while the checkpoint is written
    seen["freed"] = offload.freed
    with pytest.raises(RuntimeError) as refusal:
        offload.check_here("training")
    seen["refusal"] = str(refusal.value)
    writer.finish()
    offload.keep(["weights"])
    seen["of SYNC"] = offload.freed
    offload.keep(EVERYTHING)
    offload.check_here("training")
    with reference.swapped_in():  # and is itself bit for bit
        first = exported(trainer)
    assert all(torch.equal(first[name], tensor) for name, tensor in exported(resumed).items())
    load_checkpoint(resumed, Path(checkpoints) / "step-00000001")
    again = Offload(resumed)
    again.keep(())
    again.keep(EVERYTHING)
    other, equal = exported(still), exported(resumed)
    assert all(torch.equal(other[name], equal[name]) for name in other)
    seen["equal"] = {"after two moves": same(trainer)}
    seen["equal"]["from the checkpoint"] = train(resumed, 2) is not None and all(
        torch.equal(tensor, exported(still)[name]) for name, tensor in exported(resumed).items()
    )
    big = Offload(build_trainer(larger, ONE, ranks, optim, precision="fp32", steps=8))
    before = psutil.Process().memory_info().rss
    big.keep(["optimizer"])
    seen["of the process"] = before - psutil.Process().memory_info().rss, big.freed["gradients"]
    chunk = Chunk(num_layers=trainer.model.num_layers, first=True, last=True)
    seen["planned"] = count_static(
        [list_parameters(trainer.model, chunk, tp=1, pp=1)], element=2, num_shards=1, freeze=optim.freeze
    )
    return seen
