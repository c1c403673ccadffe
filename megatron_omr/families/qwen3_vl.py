"""Qwen3-VL, dense and with experts: learned positions and deepstack in the tower, norms of queries and keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_pipeline.encode.config import QWEN3_VL_PATCHES
from megatron_omr.families.family import Family
from megatron_omr.families.fields import Fields, read_number, read_numbers
from megatron_omr.families.shapes import MoeConfig, VisionConfig, read_tower


def _read_text(text: Fields) -> dict[str, Any]:
    if not (text.get("rope_parameters") or text.get("rope_scaling") or {}).get("mrope_interleaved"):
        # transformers takes it as set, vLLM as not
        raise ValueError("rope_parameters.mrope_interleaved must be true; add it")
    return {"head_dim": read_number(text, "head_dim"), "qkv_bias": False, "qk_norm": True}


def _read_moe_text(text: Fields) -> dict[str, Any]:
    if (norm := text.get("norm_topk_prob")) is not True:
        # transformers always divides the weights of the chosen experts by their sum, vLLM where this says so, and vLLM
        # cannot do without the field
        raise ValueError(f"norm_topk_prob={norm!r} is not supported; only True is, and it must be there")
    step = read_number({"decoder_sparse_step": 1} | dict(text), "decoder_sparse_step")
    dense = read_numbers(text, "mlp_only_layers") if text.get("mlp_only_layers") else ()
    layers = range(read_number(text, "num_hidden_layers"))
    # transformers 5 saves the number under either name
    count = "num_local_experts" if "num_experts" not in text else "num_experts"
    moe = MoeConfig(
        num_experts=read_number(text, count),
        num_chosen=read_number(text, "num_experts_per_tok"),
        intermediate_size=read_number(text, "moe_intermediate_size"),
        layers=tuple(i for i in layers if i not in dense and (i + 1) % step == 0),
    )
    if not moe.layers:
        raise ValueError(
            f"decoder_sparse_step={step} and mlp_only_layers={list(dense)} leave no layer with experts"
        )
    return _read_text(text) | {"moe": moe}


def _read_vision(vision: Fields) -> VisionConfig:
    return VisionConfig(
        num_position_embeddings=read_number(vision, "num_position_embeddings"),
        deepstack_visual_indexes=read_numbers(vision, "deepstack_visual_indexes"),
        gated_mlp=False,
        layer_norm=True,
        patch_bias=True,
        **read_tower(vision, QWEN3_VL_PATCHES, activations=("gelu_pytorch_tanh",), rope_types=("axial",)),
    )


QWEN3_VL = Family(
    model_type="qwen3_vl",
    name="Qwen3-VL",
    patches=QWEN3_VL_PATCHES,
    fixed_text={"attention_bias": (False, None)},
    fixed_rope={"mrope_interleaved": (True,)},
    read_text=_read_text,
    read_vision=_read_vision,
    text_ties=False,
    interleaved_rope=True,
    old_names=False,
)
QWEN3_VL_MOE = replace(
    QWEN3_VL,
    model_type="qwen3_vl_moe",
    name="Qwen3-VL with experts",
    read_text=_read_moe_text,
)
