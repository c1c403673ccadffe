"""Images split over context-parallel ranks: each runs through the tower once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import tiny_trainer


@pytest.mark.heavy
def test_each_image_is_computed_once_and_gradients_are_those_of_one_rank(tiny_hf: Path) -> None:
    (alone,) = run_ranks(_step, 1, str(tiny_hf), ParallelConfig())
    split = run_ranks(_step, 2, str(tiny_hf), ParallelConfig(cp=2))
    patches_alone, norm = alone
    patches = [rank[0] for rank in split]
    assert [sum(both) for both in zip(*patches, strict=True)] == patches_alone
    assert 0 in patches[1]  # the batch of one image leaves a rank without any
    assert [rank[1] for rank in split] == pytest.approx([norm, norm], rel=1e-5)  # seen: 1e-7


def _step(folder: str, parallel: ParallelConfig) -> tuple[list[int], float]:
    """Returns the patches through this rank's tower in a step of three and of one image, and the gradient norm."""
    import torch

    from data_pipeline.loader.packing import merge
    from megatron_omr.oracle import draw_example
    from megatron_omr.train.losses import sft_loss
    from megatron_omr.train.step import MicroBatch, train_step
    from megatron_omr.train.trainer import unwrap_chunks

    trainer, generator = tiny_trainer(folder, parallel), torch.Generator().manual_seed(3)
    packs = [[draw_example(trainer.model, f"{n}", n, generator)] for n in (3, 1)]
    batches = [merge(pack, multiple=4, pad_token_id=0) for pack in packs]
    seen: list[int] = []
    vision = unwrap_chunks(trainer)[0].vision_model
    vision.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    result = train_step(trainer, [MicroBatch(packed=b, loss=sft_loss) for b in batches])
    if len(seen) < len(batches):  # a rank without an image does not call the tower
        seen.append(0)
    return seen, result.grad_norm


def test_images_are_assigned_by_size_and_stay_in_order() -> None:
    from megatron_omr.model.vision.image_split import assign_images

    assert assign_images([4, 16, 4, 8, 4], 2) == [[1, 4], [0, 2, 3]]
    assert assign_images([4], 3) == [[0], [], []]
    assert assign_images([], 2) == [[], []]
