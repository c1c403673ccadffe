"""The parameters of Qwen3-VL's vision tower."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_omr.convert.rule import Rule
from megatron_omr.convert.tables.table import Table, fill
from megatron_omr.convert.tables.vision import PATCH_EMBED, vision_layer_table, vision_terms
from megatron_omr.model_config import ModelConfig


def list_vision(model: ModelConfig) -> Iterator[Rule]:
    """Yields the rules of the vision tower, in the order of the export."""
    terms = vision_terms(model)
    yield from fill(_EMBEDDING, terms)
    yield from fill(_LAYER, terms, model.vision.depth)
    yield from fill(_merger("decoder.final_layernorm", "projection", "merger", width="hidden"), terms)
    for level in range(model.vision.num_levels):
        megatron, hf = f"deepstack.{level}", f"deepstack_merger_list.{level}"
        yield from fill(_merger(f"{megatron}.norm", f"{megatron}.projection", hf, width="merged"), terms)


_EMBEDDING: Table = {
    **PATCH_EMBED,
    "vision_model.patch_embed.bias": ("same", "hidden", None, ("model.visual.patch_embed.proj.bias",)),
    "vision_model.pos_embed.weight": ("same", "positions hidden", None, ("model.visual.pos_embed.weight",)),
}

_LAYER = vision_layer_table(
    {
        "input_layernorm.bias": ("same", "hidden", None, ("norm1.bias",)),
        "pre_mlp_layernorm.bias": ("same", "hidden", None, ("norm2.bias",)),
        "mlp.linear_fc1.weight": ("padded rows", "inner hidden", 0, ("mlp.linear_fc1.weight",)),
        "mlp.linear_fc1.bias": ("padded rows", "inner", 0, ("mlp.linear_fc1.bias",)),
        "mlp.linear_fc2.weight": ("padded columns", "hidden inner", 1, ("mlp.linear_fc2.weight",)),
        "mlp.linear_fc2.bias": ("same", "hidden", None, ("mlp.linear_fc2.bias",)),
    },
)


def _merger(norm: str, projection: str, hf: str, *, width: str) -> Table:
    """Returns the rows of a merger, whose norm has `width` values."""
    norm, projection, hf = f"vision_model.{norm}", f"vision_model.{projection}.encoder", f"model.visual.{hf}"
    return {
        f"{norm}.weight": ("same", width, None, (f"{hf}.norm.weight",)),
        f"{norm}.bias": ("same", width, None, (f"{hf}.norm.bias",)),
        f"{projection}.linear_fc1.weight": ("same", "merged merged", 0, (f"{hf}.linear_fc1.weight",)),
        f"{projection}.linear_fc1.bias": ("same", "merged", 0, (f"{hf}.linear_fc1.bias",)),
        f"{projection}.linear_fc2.weight": ("same", "out merged", 1, (f"{hf}.linear_fc2.weight",)),
        f"{projection}.linear_fc2.bias": ("same", "out", None, (f"{hf}.linear_fc2.bias",)),
    }
