"""parallel.overlap: the same weights to the bit, whole wherever they leave the trainer."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from megatron_omr.config import OptimConfig, ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import exported, random_micro_batches, tiny_trainer

if TYPE_CHECKING:
    from megatron_omr.train.step import MicroBatch
    from megatron_omr.train.trainer import Trainer

pytestmark = pytest.mark.heavy

BUCKET_SIZE = 20_000
"""Parameters of a bucket: a tiny model has several, where Megatron's default holds 40 million."""


@pytest.mark.parametrize("layout", [{}, {"pp": 2}, {"cp": 2}], ids=["dp2", "pp2", "cp2"])
def test_overlap_gives_the_same_weights(tiny_hf: Path, layout: dict[str, int]) -> None:
    for seen in run_ranks(_compare, 2, str(tiny_hf), layout):
        assert seen == [True, True, True]


def test_chunks_that_take_turns_too(tiny_hf: Path) -> None:
    """Two replicas of two stages of two chunks; the one with text alone has a micro-batch and a blank."""
    for seen in run_ranks(_compare, 4, str(tiny_hf), {"pp": 2, "vp": 2}):
        assert seen == [True, True, True]


def test_tied_weights_and_bf16_too(tiny_tied_hf: Path) -> None:
    for seen in run_ranks(_compare, 2, str(tiny_tied_hf), {}, "bf16"):
        assert seen == [True, True, True]


def _compare(folder: str, layout: dict[str, int], precision: str = "fp32") -> list[bool]:
    """Trains three steps with and without overlap; returns after each whether exports and metrics are equal.

    Before each step the overlapping trainer computes logprobs with its first weights, and after it is moved to host
    memory and back, which must not change anything.
    """
    import torch

    from megatron_omr.swap.offload import EVERYTHING, Offload
    from megatron_omr.swap.reference import Reference
    from megatron_omr.train.step import forward_logprobs, train_step
    from megatron_omr.train.trainer import build_trainer

    shrink_buckets()
    optim = OptimConfig(lr=1e-3, warmup_steps=0, clip_grad=0)  # the norm adds up in another order
    overlapped = ParallelConfig(**layout, overlap=True)
    ranks = init_ranks(overlapped)
    plain, trainer = (
        build_trainer(folder, parallel, ranks, optim, precision=precision, steps=8)
        for parallel in (ParallelConfig(**layout), overlapped)
    )
    if layout == {}:
        assert len(trainer.chunks[0].bucket_groups) > 3
    packs = [batch.packed for batch in _one_rank_without_images(trainer, overlapped, 0)]
    first, reference = forward_logprobs(plain, packs), Reference(trainer.chunks)
    equal, offload = [], Offload(trainer)
    for seed in range(3):
        with reference.swapped_in():
            again = forward_logprobs(trainer, packs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        results = [train_step(t, _one_rank_without_images(t, overlapped, seed)) for t in (plain, trainer)]
        offload.keep(())
        offload.keep(["weights"])  # is all that they need to leave the trainer
        ours, theirs = exported(trainer), exported(plain)
        offload.keep(EVERYTHING)
        same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
        equal.append(same and math.isclose(results[0].grad_norm, results[1].grad_norm, rel_tol=1e-5))
    return equal


def _one_rank_without_images(trainer: Trainer, parallel: ParallelConfig, seed: int) -> list[MicroBatch]:
    """Returns micro-batches of text and images; with data parallelism the second rank has text alone."""
    batches = random_micro_batches(trainer, parallel, seed=seed)
    if trainer.ranks.dp_rank == 0:
        return batches
    text = [batch for batch in batches if not len(batch.packed.image_grid_thw)]
    assert text
    return text


def shrink_buckets() -> None:
    from megatron_omr.train import optimizer

    optimizer.DistributedDataParallelConfig = partial(
        optimizer.DistributedDataParallelConfig, bucket_size=BUCKET_SIZE
    )


def test_each_rank_holds_its_own_part_until_the_weights_leave(tiny_hf: Path) -> None:
    for stale, whole in run_ranks(_look_after_a_step, 2, str(tiny_hf)):
        assert stale
        assert whole


def _look_after_a_step(folder: str) -> tuple[bool, bool]:
    """Returns whether some weights are still the old ones after a step; whether all ranks agree once exported."""
    import torch
    import torch.distributed as dist

    from megatron_omr.train.step import train_step

    parallel = ParallelConfig(overlap=True)
    trainer = tiny_trainer(folder, parallel)
    before = exported(trainer)
    train_step(trainer, random_micro_batches(trainer, parallel, seed=1))
    buffers = [buffer.param_data.clone() for chunk in trainer.chunks for buffer in chunk.buffers]
    after = exported(trainer)
    stale = any(
        not torch.equal(old, buffer.param_data)
        for old, buffer in zip(buffers, (b for c in trainer.chunks for b in c.buffers), strict=True)
    )
    everywhere: list[dict[str, float]] = [{}, {}]
    dist.all_gather_object(everywhere, {name: float(t.double().sum()) for name, t in after.items()})
    changed = all(not torch.equal(before[name], after[name]) for name in after if "layers" in name)
    return stale, changed and everywhere[0] == everywhere[1]
