"""Qwen2.5-VL: window attention in most layers of the tower, biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from data_pipeline.encode.config import QWEN2_5_VL_PATCHES
from megatron_omr.families.family import Family
from megatron_omr.families.fields import Fields, check_fixed, read_number, read_numbers
from megatron_omr.families.shapes import VisionConfig, read_tower


def _read_text(text: Fields) -> dict[str, Any]:
    hidden, heads = read_number(text, "hidden_size"), read_number(text, "num_attention_heads")
    if hidden % heads:
        raise ValueError(f"hidden_size={hidden} must be a multiple of num_attention_heads={heads}")
    check_fixed(text, {"head_dim": (None, hidden // heads)})
    return {"head_dim": hidden // heads, "qkv_bias": True, "qk_norm": False}


def _read_vision(vision: Fields) -> VisionConfig:
    return VisionConfig(
        fullatt_block_indexes=read_numbers(vision, "fullatt_block_indexes"),
        window_size=read_number(vision, "window_size"),
        gated_mlp=True,
        layer_norm=False,
        patch_bias=False,
        **read_tower(
            vision,
            QWEN2_5_VL_PATCHES,
            activations=("silu", "swish"),  # two names of one function
            rope_types=("axial", "default"),
        ),
    )


QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    name="Qwen2.5-VL",
    patches=QWEN2_5_VL_PATCHES,
    fixed_text={"use_sliding_window": (False, None)},
    fixed_rope={"mrope_interleaved": (False, None)},
    read_text=_read_text,
    read_vision=_read_vision,
    text_ties=True,
    interleaved_rope=False,
    old_names=True,
)
