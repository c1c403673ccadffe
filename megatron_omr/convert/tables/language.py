"""The parameters of the language model, of every family."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_omr.convert.ops import InterleaveQKV, Same, StackExperts
from megatron_omr.convert.rule import Rule
from megatron_omr.convert.tables.table import Table, Terms, fill, fill_layer, layer_table
from megatron_omr.model_config import ModelConfig

EMBEDDING = "language_model.embedding.word_embeddings.weight"
OUTPUT_LAYER = "language_model.output_layer.weight"


def list_language(model: ModelConfig) -> Iterator[Rule]:
    """Yields the rules of the language model, in the order of the export."""
    terms = _language_terms(model)
    yield from fill(_EMBEDDING, terms)
    yield from _list_layers(model, terms)
    yield from (
        r for r in fill(_HEAD, terms) if not (model.tie_word_embeddings and r.megatron == OUTPUT_LAYER)
    )


_EMBEDDING: Table = {
    EMBEDDING: ("same", "vocabulary hidden", 0, ("model.language_model.embed_tokens.weight",))
}


def _list_layers(model: ModelConfig, terms: Terms) -> Iterator[Rule]:
    with_experts = model.moe.layers if model.moe else ()
    is_mixed = 0 < len(with_experts) < model.num_layers
    tables = {kind: _layer(model, with_experts=kind) for kind in (False, True)}
    for layer in range(model.num_layers):
        # layers of two kinds have no parameters in common that a checkpoint could stack
        yield from fill_layer(
            tables[layer in with_experts], terms, layer, 0 if is_mixed else model.num_layers
        )


def _layer(model: ModelConfig, *, with_experts: bool) -> Table:
    rows = {
        **_LAYER,
        **(_EXPERTS if with_experts else _MLP),
        **(_QKV_BIAS if model.qkv_bias else {}),
        **(_QK_NORM if model.qk_norm else {}),
    }
    return layer_table("language_model.decoder", "model.language_model.layers", rows)


_LAYER: Table = {
    "input_layernorm.weight": ("same", "hidden", None, ("input_layernorm.weight",)),
    "self_attention.linear_qkv.weight": (
        *("qkv", "qkv hidden", 0),
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ),
    "self_attention.linear_proj.weight": ("same", "hidden heads", 1, ("self_attn.o_proj.weight",)),
    "pre_mlp_layernorm.weight": ("same", "hidden", None, ("post_attention_layernorm.weight",)),
}

_MLP: Table = {
    "mlp.linear_fc1.weight": (
        *("gated", "gate_up hidden", 0),
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    ),
    "mlp.linear_fc2.weight": ("same", "hidden inner", 1, ("mlp.down_proj.weight",)),
}

_EXPERTS: Table = {
    "mlp.router.weight": ("same", "experts hidden", None, ("mlp.gate.weight",)),
    "mlp.experts.linear_fc1.weight": (
        *("gated experts", "experts expert_gate_up hidden", 1),
        ("mlp.experts.gate_up_proj",),
    ),
    "mlp.experts.linear_fc2.weight": (
        *("experts", "experts hidden expert_inner", 2),
        ("mlp.experts.down_proj",),
    ),
}

_QKV_BIAS: Table = {
    "self_attention.linear_qkv.bias": (
        *("qkv", "qkv", 0),
        ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    )
}

_QK_NORM: Table = {
    "self_attention.q_layernorm.weight": ("same", "head", None, ("self_attn.q_norm.weight",)),
    "self_attention.k_layernorm.weight": ("same", "head", None, ("self_attn.k_norm.weight",)),
}

_HEAD: Table = {
    "language_model.decoder.final_layernorm.weight": (
        *("same", "hidden", None),
        ("model.language_model.norm.weight",),
    ),
    OUTPUT_LAYER: ("same", "vocabulary hidden", 0, ("lm_head.weight",)),
}


def _language_terms(model: ModelConfig) -> Terms:
    qkv = InterleaveQKV(
        num_groups=model.num_kv_heads,
        heads_per_group=model.num_heads // model.num_kv_heads,
        head_dim=model.head_dim,
    )
    sizes = {
        "hidden": model.hidden_size,
        "head": model.head_dim,
        "heads": model.num_heads * model.head_dim,
        "qkv": (model.num_heads + 2 * model.num_kv_heads) * model.head_dim,
        "inner": model.intermediate_size,
        "gate_up": 2 * model.intermediate_size,
        "vocabulary": model.vocab_size,
    }
    if model.moe:
        inner = model.moe.intermediate_size
        sizes |= {"experts": model.moe.num_experts, "expert_inner": inner, "expert_gate_up": 2 * inner}
    ops = {
        "same": Same(),
        "gated": Same(num_pieces=2),
        "qkv": qkv,
        "experts": StackExperts(),
        "gated experts": StackExperts(num_pieces=2),
    }
    return Terms(ops=ops, sizes=sizes, old_names=model.family.old_names)
