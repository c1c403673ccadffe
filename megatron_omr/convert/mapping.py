"""The one table of names: Megatron parameter <-> Hugging Face tensors, for the Qwen2.5-VL family.

`{}` in a pattern is the layer. Names are those of plain-torch layers; Transformer Engine fuses norms into the
linear that follows, and `canonical_name` translates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn

from megatron_omr.convert.ops import FlattenPatch, InterleaveQKV, Op, Pad, Same
from megatron_omr.model.spec import FUSED_NORM_KEYS
from megatron_omr.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A Megatron parameter and the Hugging Face tensors that it consists of."""

    megatron: str
    hf: tuple[str, ...]
    op: Op


def build_rules(model: ModelConfig) -> list[Rule]:
    """Returns a rule for each parameter of `model`, in the order of the export."""
    table = [
        *_fill(_VISION, 1, _vision_ops(model)),
        *_fill(_VISION_LAYER, model.vision.depth, _vision_ops(model)),
        *_fill(_MERGER, 1, _vision_ops(model)),
        *_fill(_EMBEDDING, 1, _language_ops(model)),
        *_fill(_LANGUAGE_LAYER, model.num_layers, _language_ops(model)),
        *_fill(_HEAD, 1, _language_ops(model)),
    ]
    return [r for r in table if not (model.tie_word_embeddings and r.megatron == OUTPUT_LAYER)]


EMBEDDING = "language_model.embedding.word_embeddings.weight"
OUTPUT_LAYER = "language_model.output_layer.weight"

_VISION = {"vision_model.patch_embed.weight": ("patch", "model.visual.patch_embed.proj.weight")}

_VISION_LAYER = {
    f"vision_model.decoder.layers.{{}}.{megatron}": (op, *(f"model.visual.blocks.{{}}.{name}" for name in hf))
    for megatron, (op, *hf) in {
        "input_layernorm.weight": ("same", "norm1.weight"),
        "self_attention.linear_qkv.weight": ("qkv", "attn.qkv.weight"),
        "self_attention.linear_qkv.bias": ("qkv", "attn.qkv.bias"),
        "self_attention.linear_proj.weight": ("same", "attn.proj.weight"),
        "self_attention.linear_proj.bias": ("same", "attn.proj.bias"),
        "pre_mlp_layernorm.weight": ("same", "norm2.weight"),
        "mlp.linear_fc1.weight": ("padded rows", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "mlp.linear_fc1.bias": ("padded rows", "mlp.gate_proj.bias", "mlp.up_proj.bias"),
        "mlp.linear_fc2.weight": ("padded columns", "mlp.down_proj.weight"),
        "mlp.linear_fc2.bias": ("same", "mlp.down_proj.bias"),
    }.items()
}

_MERGER = {
    "vision_model.decoder.final_layernorm.weight": ("same", "model.visual.merger.ln_q.weight"),
    "vision_model.projection.encoder.linear_fc1.weight": ("same", "model.visual.merger.mlp.0.weight"),
    "vision_model.projection.encoder.linear_fc1.bias": ("same", "model.visual.merger.mlp.0.bias"),
    "vision_model.projection.encoder.linear_fc2.weight": ("same", "model.visual.merger.mlp.2.weight"),
    "vision_model.projection.encoder.linear_fc2.bias": ("same", "model.visual.merger.mlp.2.bias"),
}

_EMBEDDING = {EMBEDDING: ("same", "model.language_model.embed_tokens.weight")}

_LANGUAGE_LAYER = {
    f"language_model.decoder.layers.{{}}.{megatron}": (
        op,
        *(f"model.language_model.layers.{{}}.{name}" for name in hf),
    )
    for megatron, (op, *hf) in {
        "input_layernorm.weight": ("same", "input_layernorm.weight"),
        "self_attention.linear_qkv.weight": ("qkv", *(f"self_attn.{x}_proj.weight" for x in "qkv")),
        "self_attention.linear_qkv.bias": ("qkv", *(f"self_attn.{x}_proj.bias" for x in "qkv")),
        "self_attention.linear_proj.weight": ("same", "self_attn.o_proj.weight"),
        "pre_mlp_layernorm.weight": ("same", "post_attention_layernorm.weight"),
        "mlp.linear_fc1.weight": ("gated", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "mlp.linear_fc2.weight": ("same", "mlp.down_proj.weight"),
    }.items()
}

_HEAD = {
    "language_model.decoder.final_layernorm.weight": ("same", "model.language_model.norm.weight"),
    OUTPUT_LAYER: ("same", "lm_head.weight"),
}


def _language_ops(model: ModelConfig) -> dict[str, Op]:
    qkv = InterleaveQKV(
        num_groups=model.num_kv_heads,
        heads_per_group=model.num_heads // model.num_kv_heads,
        head_dim=model.head_dim,
    )
    return {"same": Same(), "gated": Same(num_pieces=2), "qkv": qkv}


def _vision_ops(model: ModelConfig) -> dict[str, Op]:
    vision = model.vision
    qkv = InterleaveQKV(
        num_groups=vision.num_heads, head_dim=vision.hidden_size // vision.num_heads, stacked=True
    )
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    pad = partial(Pad, size=vision.intermediate_size, padded_size=vision.padded_intermediate_size)
    return {
        "same": Same(),
        "padded rows": pad(dim=0, num_pieces=2),
        "padded columns": pad(dim=1),
        "qkv": qkv,
        "patch": FlattenPatch(kernel=kernel),
    }


def _fill(table: dict[str, tuple[str, ...]], num_layers: int, ops: dict[str, Op]) -> list[Rule]:
    return [
        Rule(megatron=megatron.format(layer), hf=tuple(name.format(layer) for name in hf), op=ops[op])
        for layer in range(num_layers)
        for megatron, (op, *hf) in table.items()
    ]


def collect_parameters(chunks: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """Returns this rank's parameters by canonical name."""
    named = {}
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            named[canonical_name(name, chunk)] = parameter
    return named


def canonical_name(name: str, chunk: nn.Module) -> str:
    """Returns a parameter's name with its global layer number and without fused norms."""
    match = re.fullmatch(r"(.*\.layers\.)(\d+)\.(.*)", name)
    if match is None:
        return name
    prefix, index, rest = match.groups()
    layer = chunk.get_submodule(f"{prefix}{index}")
    assert isinstance(layer, TransformerLayer)
    number = layer.layer_number - 1  # global, from 0
    for separate, fused in FUSED_NORM_KEYS.items():
        rest = rest.replace(fused, separate)
    return f"{prefix}{number}.{rest}"


def partition_dim(parameter: nn.Parameter) -> int | None:
    """Returns the dimension cut over tensor parallelism, None where every rank holds the whole."""
    marked = "tensor_model_parallel" in parameter.__dict__ and parameter.tensor_model_parallel
    return parameter.partition_dim if marked else None
