"""What the tables of all vision towers have in common: rows, and what the words of a table mean."""

from __future__ import annotations

from functools import partial

from megatron_omr.convert.ops import FlattenPatch, InterleaveQKV, Pad, Same
from megatron_omr.convert.tables.table import Table, Terms, layer_table
from megatron_omr.model_config import ModelConfig

PATCH_EMBED: Table = {
    "vision_model.patch_embed.weight": (
        *("patch", "hidden patch", None),
        ("model.visual.patch_embed.proj.weight",),
    )
}

_LAYER: Table = {
    "input_layernorm.weight": ("same", "hidden", None, ("norm1.weight",)),
    "self_attention.linear_qkv.weight": ("qkv", "qkv hidden", 0, ("attn.qkv.weight",)),
    "self_attention.linear_qkv.bias": ("qkv", "qkv", 0, ("attn.qkv.bias",)),
    "self_attention.linear_proj.weight": ("same", "hidden hidden", 1, ("attn.proj.weight",)),
    "self_attention.linear_proj.bias": ("same", "hidden", None, ("attn.proj.bias",)),
    "pre_mlp_layernorm.weight": ("same", "hidden", None, ("norm2.weight",)),
}


def vision_layer_table(rows: Table) -> Table:
    """Returns the rows of a tower's layer: those of all towers, then `rows`, its own."""
    return layer_table("vision_model.decoder", "model.visual.blocks", {**_LAYER, **rows})


def vision_terms(model: ModelConfig) -> Terms:
    """Returns what the words of a vision tower's table mean."""
    vision = model.vision
    qkv = InterleaveQKV(
        num_groups=vision.num_heads, head_dim=vision.hidden_size // vision.num_heads, stacked=True
    )
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    pad = partial(Pad, size=vision.intermediate_size, padded_size=vision.padded_intermediate_size)
    ops = {
        "same": Same(),
        "padded rows": pad(dim=0, num_pieces=2 if vision.gated_mlp else 1),
        "padded columns": pad(dim=1),
        "qkv": qkv,
        "patch": FlattenPatch(kernel=kernel),
    }
    sizes = {
        "hidden": vision.hidden_size,
        "patch": vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        "qkv": 3 * vision.hidden_size,
        "inner": vision.padded_intermediate_size,
        "gate_up": 2 * vision.padded_intermediate_size,
        "positions": vision.num_position_embeddings,
        "merged": vision.hidden_size * vision.spatial_merge_size**2,
        "out": vision.out_hidden_size,
    }
    return Terms(ops=ops, sizes=sizes, old_names=model.family.old_names)
