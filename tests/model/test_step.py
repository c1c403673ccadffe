"""The optimizer step: bad gradients are skipped on all ranks, and its values are logged."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import random_micro_batches, tiny_trainer

if TYPE_CHECKING:
    from megatron_omr.train.step import Work

pytestmark = pytest.mark.heavy


def test_mfu_is_logged_where_the_peak_is_known() -> None:
    (known, unknown) = run_ranks(_mfu, 1)[0]
    assert known == pytest.approx(989e12 / 4 / (2 * 989e12 * 2))
    assert unknown is None


def _mfu() -> tuple[float | None, float | None]:
    """Returns the MFU of a step on two H200 and on this machine: FLOPs of a quarter of a second, in two seconds."""
    from megatron_omr import cpu
    from megatron_omr.train.step import StepResult, Work, summarize_step

    work = Work(num_tokens=8, num_learned=4, padding=0.1, flops=989e12 / 4, excess=0.0)
    result = StepResult(loss=1, grad_norm=1, lr=1, skipped=False, work=work)
    here = summarize_step(result, 2.0, 2).get("mfu")
    cpu.device_name = lambda: "NVIDIA H200"
    return summarize_step(result, 2.0, 2).get("mfu"), here


def test_nan_gradient_of_one_rank_skips_the_step_on_all(tiny_hf: Path) -> None:
    for seen in run_ranks(_poisoned_step, 2, str(tiny_hf)):
        assert seen == {
            "skipped": True,
            "norm_is_finite": False,
            "unchanged": True,
            "next_skipped": False,
            "next_changed": True,
        }


def _poisoned_step(folder: str) -> dict[str, bool]:
    """Makes a good step, one whose loss is NaN on one rank only, and a good step."""
    import torch

    from megatron_omr.train.losses import LossOutput
    from megatron_omr.train.step import train_step

    trainer = tiny_trainer(folder, ParallelConfig())
    first, second, third = (random_micro_batches(trainer, ParallelConfig(), seed=s) for s in range(3))
    parameters = [p for chunk in trainer.chunks for p in chunk.parameters()]

    def poison(good, *args) -> LossOutput:
        output = good(*args)
        return replace(output, loss_sum=output.loss_sum * math.nan)

    train_step(trainer, first)
    before = [p.detach().clone() for p in parameters]
    if trainer.ranks.dp_rank == 1:
        second = [replace(batch, loss=partial(poison, batch.loss)) for batch in second]
    bad = train_step(trainer, second)
    unchanged = all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    good = train_step(trainer, third)
    return {
        "skipped": bad.skipped,
        "norm_is_finite": math.isfinite(bad.grad_norm),
        "unchanged": unchanged,
        "next_skipped": good.skipped,
        "next_changed": not torch.equal(before[0], parameters[0]),
    }


def test_work_is_that_of_all_ranks_without_padding(tiny_hf: Path) -> None:
    """Two replicas with samples of 9 and 30 tokens, padded to 12 and 32."""
    for flops, work in run_ranks(_work_of_two, 2, str(tiny_hf)):
        assert (work.num_tokens, work.padding) == (39, pytest.approx(5 / 44))
        assert work.flops == pytest.approx(sum(flops))
        assert work.excess == pytest.approx(flops[1] / (sum(flops) / 2) - 1)


def _work_of_two(folder: str) -> tuple[list[float], Work]:
    from data_pipeline.loader.packing import merge
    from megatron_omr.flops import train_step_flops
    from megatron_omr.train.losses import sft_loss
    from megatron_omr.train.step import MicroBatch, train_step
    from tests.data.loader.test_packing import make_example

    trainer, lengths = tiny_trainer(folder, ParallelConfig()), [9, 30]
    length = lengths[trainer.ranks.dp_rank]
    text = {"input_ids": torch.arange(length) + 100, "pixels": torch.zeros(0, 588, dtype=torch.uint8)}
    packed = merge([replace(make_example(0, length), **text)], multiple=4, pad_token_id=0)
    step = train_step(trainer, [MicroBatch(packed=packed, loss=sft_loss)])
    return [train_step_flops(trainer.model, [length], []) for length in lengths], step.work


def test_rank_without_a_micro_batch_is_an_error(tiny_hf: Path) -> None:
    assert "raise the batch size" in run_ranks(_empty_step, 1, str(tiny_hf))[0]


def _empty_step(folder: str) -> str:
    from megatron_omr.train.step import train_step

    with pytest.raises(ValueError) as error:
        train_step(tiny_trainer(folder, ParallelConfig()), [])
    return str(error.value)


def test_pixels_and_batches_move_only_where_and_when_they_are_needed(tiny_hf: Path) -> None:
    for vp in (1, 2):
        first, last = run_ranks(_moved_batches, 2, str(tiny_hf), ParallelConfig(pp=2, vp=vp))
        (pixels, *others), moved_at_once = first
        assert sum(pixels) > 0 and moved_at_once == [1] * len(pixels) * vp
        nothing = [0] * len(pixels)
        assert others == [nothing] * (vp - 1)
        assert last == ([nothing] * vp, moved_at_once)


def _moved_batches(folder: str, parallel: ParallelConfig) -> tuple[list[list[int]], list[int]]:
    """Returns the patches that each chunk gets in its passes of a step, and the batches that moved for each pass."""
    from data_pipeline.types import PackedBatch
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import unwrap_chunks

    trainer = tiny_trainer(folder, parallel)
    micro_batches = random_micro_batches(trainer, parallel, seed=1)
    chunks = unwrap_chunks(trainer)
    pixels: list[list[int]] = [[] for _ in chunks]
    moved, to = [0], PackedBatch.to

    def count(batch: PackedBatch, device: str) -> PackedBatch:
        moved[-1] += 1
        return to(batch, device)

    def see(chunk, args) -> None:
        pixels[chunks.index(chunk)].append(len(args[0].pixels))
        moved.append(0)

    PackedBatch.to = count
    for chunk in chunks:
        chunk.register_forward_pre_hook(see)
    train_step(trainer, micro_batches)
    return pixels, moved[:-1]
