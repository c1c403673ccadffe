"""The parameters of Qwen2.5-VL's vision tower."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_omr.convert.rule import Rule
from megatron_omr.convert.tables.table import Table, fill
from megatron_omr.convert.tables.vision import PATCH_EMBED, vision_layer_table, vision_terms
from megatron_omr.model_config import ModelConfig


def list_vision(model: ModelConfig) -> Iterator[Rule]:
    """Yields the rules of the vision tower, in the order of the export."""
    terms = vision_terms(model)
    yield from fill(PATCH_EMBED, terms)
    yield from fill(_LAYER, terms, model.vision.depth)
    yield from fill(_MERGER, terms)


_LAYER = vision_layer_table(
    {
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
