"""FLOPs against figures computed by hand for Qwen2.5-VL-7B, and against PyTorch's own counter of matrix products."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.bench_flops import markdown
from benchmarks.peer_flops import PEERS
from benchmarks.recipe_batch import BATCH, draw_sizes
from data_pipeline.loader.packing import balance
from data_pipeline.types import Example
from megatron_omr.flops import (
    build_cost_model,
    language_forward_flops,
    patch_embed_flops,
    peak_flops,
    recomputed_flops,
    train_step_flops,
    vision_forward_flops,
)
from megatron_omr.model_config import ModelConfig, Part
from megatron_omr.plan.shapes import published_shape
from tests.helpers.ranks import init_ranks, run_ranks

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

FROZEN = (
    ("vision",),
    ("projector",),
    ("language",),
    ("vision", "projector"),
    ("vision", "language"),
    ("projector", "language"),
)
QWEN_7B = published_shape("Qwen2.5-VL-7B-Instruct")


@pytest.mark.parametrize(
    ("side", "teraflops"), [(24, 0.752), (32, 1.347), (48, 3.091), (64, 5.645), (128, 26.71)]
)
def test_vision_tower_of_7b(side: int, teraflops: float) -> None:
    assert vision_forward_flops(QWEN_7B, [(1, side, side)]) / 1e12 == pytest.approx(teraflops, rel=1e-3)


def test_language_model_of_7b_is_two_flops_a_parameter_and_token() -> None:
    """7.07 G parameters outside the embedding; attention adds little at 4k tokens."""
    per_token = language_forward_flops(QWEN_7B, [4_096]) / 4_096
    assert per_token / 2 / 7.07e9 == pytest.approx(1.06, abs=0.01)


@pytest.mark.parametrize("base", ["tiny_hf", "tiny_qwen3"])
@pytest.mark.parametrize("side", [(8, 8), (16, 24), (10, 14), (4, 6), (22, 18), (2, 40)], ids=str)
def test_torch_counts_the_same_products_of_the_tower(
    base: str, side: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    """transformers attends to each window by itself, whole or partial, so its counter sees no padding."""
    import torch
    from transformers import AutoModelForImageTextToText

    folder = request.getfixturevalue(base)
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    shape, (height, width) = ModelConfig.from_hf(folder), side
    grids = torch.tensor([[1, height, width], [1, 6, 4]])
    pixels = torch.randn(int(grids.prod(dim=1).sum()), 2 * shape.family.patches.num_bytes)
    with count_flops() as counter, torch.no_grad():
        model.model.visual(pixels, grid_thw=grids)
    assert counter.get_total_flops() == vision_forward_flops(shape, grids.tolist())


@pytest.mark.heavy
@pytest.mark.parametrize("base", ["tiny_hf", "tiny_qwen3"])
def test_torch_counts_the_same_products_of_a_step(base: str, request: pytest.FixtureRequest) -> None:
    """Our model, forward and backward, with and without images, recomputation and frozen parts."""
    for counted, computed in run_ranks(_count_steps, 1, str(request.getfixturevalue(base)))[0]:
        assert counted == computed


def _count_steps(folder: str) -> list[tuple[int, float]]:
    """Returns the FLOPs of steps, as the counter sees them and as computed.

    The counter sees full squares where causal attention needs half, and the padding of sequences that attend in one
    batch (so they are of equal length here).
    """
    from data_pipeline.loader.packing import merge
    from megatron_omr.config import ComputeConfig, ParallelConfig
    from megatron_omr.train.losses import sft_loss
    from megatron_omr.train.step import MicroBatch, train_step
    from megatron_omr.train.trainer import build_trainer
    from tests.helpers.trainers import OPTIM

    ranks, model, seen = init_ranks(ParallelConfig()), ModelConfig.from_hf(folder), []
    plain, both = ComputeConfig(), ComputeConfig(recompute="full", recompute_vision="full")
    one, two = [(1, 16, 8)], [(1, 8, 8), (1, 8, 16)]
    cases = [((), plain, one), ((), plain, two), ((), plain, []), ((), both, two)]
    cases += [((), ComputeConfig(recompute=recompute), two) for recompute in ("mlp", "full")]
    cases += [(freeze, plain, grids) for freeze in FROZEN for grids in (one, [])]
    for freeze, compute, grids in cases:
        optim = replace(OPTIM, freeze=freeze)
        trainer = build_trainer(
            folder, ParallelConfig(), ranks, optim, precision="fp32", steps=8, compute=compute
        )
        examples = [make_example(model, str(n), grids) for n in range(3)]
        packed = merge(examples, pad_token_id=0)
        with count_flops() as counter:
            train_step(trainer, [MicroBatch(packed=packed, loss=sft_loss)])
        lengths, sizes = packed.cu_seqlens.diff().tolist(), packed.image_grid_thw.tolist()
        ours = train_step_flops(model, lengths, sizes, freeze=freeze) + recomputed_flops(
            model, lengths, sizes, language=compute.recompute, vision=compute.recompute_vision
        )
        passes = 4 if compute.recompute == "full" else 3
        width = model.num_heads * model.head_dim
        other_half = passes * 2 * model.num_layers * width * sum(n**2 for n in lengths)
        seen.append((counter.get_total_flops(), ours + other_half))
    return seen


@contextmanager
def count_flops() -> Iterator[FlopCounterMode]:
    """Counts products, those of attention among them: forward two, backward four."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # the fused kernels compute the scores again in the backward pass, and on CPUs are not counted at all
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def make_example(model: ModelConfig, name: str, grids: list[tuple[int, int, int]]) -> Example:
    """Returns a sample of 20 tokens and images of these sizes."""
    import torch

    from data_pipeline.encode.positions import mrope_position_ids

    sizes = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)
    images = [torch.full((t * h * w // 4,), model.image_token_id) for t, h, w in grids]
    text = torch.arange(20 + len(grids)) + 30
    ids = torch.cat(
        [part for n, image in enumerate(images) for part in (text[n : n + 1], image)] + [text[-20:]]
    )
    return Example(
        id=name,
        input_ids=ids,
        loss_mask=torch.ones(len(ids)),
        position_ids=mrope_position_ids(
            ids, sizes, image_token_id=model.image_token_id, spatial_merge_size=2
        ),
        pixels=torch.zeros(int(sizes.prod(dim=1).sum()), model.family.patches.num_bytes, dtype=torch.uint8),
        image_grid_thw=sizes,
    )


def test_step_is_three_forwards_but_for_pixels_and_packing_adds_up() -> None:
    grids = [(1, 8, 8), (1, 4, 6)]
    apart = [train_step_flops(QWEN_7B, [n], [g]) for n, g in zip((100, 50), grids, strict=True)]
    assert train_step_flops(QWEN_7B, [100, 50], grids) == pytest.approx(sum(apart))
    forward = language_forward_flops(QWEN_7B, [100]) + vision_forward_flops(QWEN_7B, grids[:1])
    assert apart[0] == 3 * forward - patch_embed_flops(QWEN_7B, grids[:1]), "pixels need no gradient"


def test_branch_attends_to_its_root() -> None:
    whole = language_forward_flops(QWEN_7B, [150])
    assert language_forward_flops(QWEN_7B, [100, 50], [0, 100]) == pytest.approx(whole)
    two = language_forward_flops(QWEN_7B, [100, 50, 50], [0, 100, 100])
    assert language_forward_flops(QWEN_7B, [100]) < two < 2 * whole


def test_peaks_are_known_by_name() -> None:
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("cpu") is None


@pytest.mark.parametrize("freeze", [(), ("vision",), ("language",)])
def test_cost_model_has_the_same_parts(freeze: tuple[Part, ...]) -> None:
    """Exact for images of whole windows."""
    cost, grids = build_cost_model(QWEN_7B, freeze), [(1, 8, 8), (1, 64, 24)]
    patches = [h * w for _, h, w in grids]
    exact = train_step_flops(QWEN_7B, [5_000], grids, freeze=freeze)
    assert cost.sample(5_000, patches) == pytest.approx(exact)
    assert cost.sequence(300) + cost.sequence(200, prefix=300) == pytest.approx(cost.sequence(500))


@pytest.mark.parametrize("dp_size", [8, 32])
def test_ranks_of_the_recipe_differ_by_less_than_three_percent(dp_size: int) -> None:
    cost = build_cost_model(QWEN_7B)
    step = draw_sizes(BATCH, seed=2, images=True)
    costs = [cost.sample(s.tokens, [h * w for _, h, w in s.grids]) for s in step]
    flops = [
        train_step_flops(
            QWEN_7B, [step[i].tokens for i in own], [grid for i in own for grid in step[i].grids]
        )
        for own in balance(costs, dp_size)
    ]
    assert max(flops) / (sum(flops) / dp_size) - 1 < 0.03


def test_docs_hold_the_errors_of_other_formulas() -> None:
    page = (Path(__file__).parents[2] / "docs" / "flops.md").read_text()
    assert markdown() in re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", page), "but for its links to the card"


@pytest.mark.parametrize(
    ("side", "verl", "bridge"), [(24, -0.11, -0.16), (64, 0.26, 0.21), (128, 1.30, 1.26)]
)
def test_errors_of_other_formulas_on_images(side: int, verl: float, bridge: float) -> None:
    """Against figures computed by hand, of the forward pass."""
    exact = train_step_flops(QWEN_7B, [], [(1, side, side)])
    for peer, error in (("verl", verl), ("Megatron-Bridge", bridge)):
        assert PEERS[peer](QWEN_7B, [], [(1, side, side)]) / exact - 1 == pytest.approx(error, abs=0.01)


def test_recomputation_is_part_of_a_forward() -> None:
    whole = (QWEN_7B, [1_000, 200], [(1, 24, 30)])
    mlp, layers, tower = (
        recomputed_flops(*whole, language=language, vision=vision)
        for language, vision in (("mlp", "none"), ("full", "none"), ("none", "full"))
    )
    assert recomputed_flops(*whole, language="none", vision="none") == 0
    assert 0.8 < mlp / layers < 0.9  # 7B: 204 of 233 million weights a layer, less for attention
    assert layers == language_forward_flops(*whole[:2]) - 2 * 1_200 * 3_584 * 152_064
    assert 0.9 < tower / vision_forward_flops(QWEN_7B, whole[2]) < 1
