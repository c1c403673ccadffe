"""The parameters of Qwen2.5-VL's vision tower."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_omr.convert.rule import Rule
from megatron_omr.convert.tables.table import Table, fill, layer_table, vision_terms
from megatron_omr.model_config import ModelConfig


def list_vision(model: ModelConfig) -> Iterator[Rule]:
    """Yields the rules of the vision tower, in the order of the export."""
    terms = vision_terms(model)
    yield from fill(_VISION, terms)
    yield from fill(_VISION_LAYER, terms, model.vision.depth)
    yield from fill(_MERGER, terms)


_VISION: Table = {
    "vision_model.patch_embed.weight": (
        "patch",
        "hidden patch",
        None,
        ("model.visual.patch_embed.proj.weight",),
    )
}

_VISION_LAYER = layer_table(
    "vision_model.decoder",
    "model.visual.blocks",
    {
        "input_layernorm.weight": ("same", "hidden", None, ("norm1.weight",)),
        "self_attention.linear_qkv.weight": ("qkv", "qkv hidden", 0, ("attn.qkv.weight",)),
        "self_attention.linear_qkv.bias": ("qkv", "qkv", 0, ("attn.qkv.bias",)),
        "self_attention.linear_proj.weight": ("same", "hidden hidden", 1, ("attn.proj.weight",)),
        "self_attention.linear_proj.bias": ("same", "hidden", None, ("attn.proj.bias",)),
        "pre_mlp_layernorm.weight": ("same", "hidden", None, ("norm2.weight",)),
        "mlp.linear_fc1.weight": (
            *("padded rows", "gate_up hidden", 0),
            ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ),
        "mlp.linear_fc1.bias": ("padded rows", "gate_up", 0, ("mlp.gate_proj.bias", "mlp.up_proj.bias")),
        "mlp.linear_fc2.weight": ("padded columns", "hidden inner", 1, ("mlp.down_proj.weight",)),
        "mlp.linear_fc2.bias": ("same", "hidden", None, ("mlp.down_proj.bias",)),
    },
)

_MERGER: Table = {
    "vision_model.decoder.final_layernorm.weight": (
        *("same", "hidden", None),
        ("model.visual.merger.ln_q.weight",),
    ),
    "vision_model.projection.encoder.linear_fc1.weight": (
        *("same", "merged merged", 0),
        ("model.visual.merger.mlp.0.weight",),
    ),
    "vision_model.projection.encoder.linear_fc1.bias": (
        *("same", "merged", 0),
        ("model.visual.merger.mlp.0.bias",),
    ),
    "vision_model.projection.encoder.linear_fc2.weight": (
        *("same", "out merged", 1),
        ("model.visual.merger.mlp.2.weight",),
    ),
    "vision_model.projection.encoder.linear_fc2.bias": (
        *("same", "out", None),
        ("model.visual.merger.mlp.2.bias",),
    ),
}
