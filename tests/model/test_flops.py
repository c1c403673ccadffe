"""FLOPs against figures computed by hand for Qwen2.5-VL-7B, and against PyTorch's own counter."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_omr.model_config import ModelConfig, RopeConfig, VisionConfig
from megatron_omr.train.flops import (
    language_forward_flops,
    peak_flops,
    train_step_flops,
    vision_forward_flops,
)

QWEN_7B = ModelConfig(
    vocab_size=152_064,
    hidden_size=3_584,
    intermediate_size=18_944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    rms_norm_eps=1e-6,
    rope=RopeConfig(theta=1e6, mrope_section=(16, 24, 24)),
    max_position_embeddings=128_000,
    tie_word_embeddings=False,
    image_token_id=151_655,
    video_token_id=151_656,
    vision_start_token_id=151_652,
    vision_end_token_id=151_653,
    precision="bf16",
    vision=VisionConfig(
        depth=32,
        hidden_size=1_280,
        intermediate_size=3_420,
        num_heads=16,
        patch_size=14,
        temporal_patch_size=2,
        in_channels=3,
        spatial_merge_size=2,
        window_size=112,
        fullatt_block_indexes=(7, 15, 23, 31),
        out_hidden_size=3_584,
    ),
)


@pytest.mark.parametrize(
    ("side", "teraflops"), [(24, 0.752), (32, 1.347), (48, 3.091), (64, 5.645), (128, 26.71)]
)
def test_vision_tower_of_7b(side: int, teraflops: float) -> None:
    assert vision_forward_flops(QWEN_7B, [(1, side, side)]) / 1e12 == pytest.approx(teraflops, rel=1e-3)


def test_language_model_of_7b_is_two_flops_a_parameter_and_token() -> None:
    """7.07 G parameters outside the embedding; attention adds little at 4k tokens."""
    per_token = language_forward_flops(QWEN_7B, [4_096]) / 4_096
    assert per_token / 2 / 7.07e9 == pytest.approx(1.06, abs=0.01)


def test_torch_counts_the_same_products(tiny_hf: Path) -> None:
    """transformers' forward under torch's FlopCounterMode, which counts full squares where we count causal halves."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_hf, attn_implementation="eager")
    ids = torch.randint(10, 200, (1, 96))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids)
    config = ModelConfig.from_hf(tiny_hf)
    full_square = 2 * config.num_layers * config.hidden_size * 96**2
    assert counter.get_total_flops() == pytest.approx(
        language_forward_flops(config, [96]) + full_square, rel=1e-2
    )


def test_step_is_three_forwards_and_packing_adds_up() -> None:
    grids = [(1, 8, 8), (1, 4, 6)]
    apart = [train_step_flops(QWEN_7B, [n], [g]) for n, g in zip((100, 50), grids, strict=True)]
    assert train_step_flops(QWEN_7B, [100, 50], grids) == pytest.approx(sum(apart))
    assert apart[0] == 3 * (language_forward_flops(QWEN_7B, [100]) + vision_forward_flops(QWEN_7B, grids[:1]))


def test_branch_attends_to_its_root() -> None:
    whole = language_forward_flops(QWEN_7B, [150])
    assert language_forward_flops(QWEN_7B, [100, 50], [0, 100]) == pytest.approx(whole)
    two = language_forward_flops(QWEN_7B, [100, 50, 50], [0, 100, 100])
    assert language_forward_flops(QWEN_7B, [100]) < two < 2 * whole


def test_peaks_are_known_by_name() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("cpu") is None
