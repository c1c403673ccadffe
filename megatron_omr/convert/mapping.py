"""The one table of parameters: Megatron's names, places and cuts <-> Hugging Face tensors, for the Qwen2.5-VL family.

`{}` in a pattern is the layer. Names of parameters are those of plain-torch layers; Transformer Engine fuses norms into
the linear that follows, and so do the keys of checkpoints. Imports no Megatron.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from megatron_omr.convert.ops import FlattenPatch, InterleaveQKV, Op, Pad, Same, Segment
from megatron_omr.model.names import FUSED_NORM_KEYS
from megatron_omr.model_config import ModelConfig

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and sizes of a part of a parameter."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A Megatron parameter, its place in a checkpoint, and the Hugging Face tensors that it consists of."""

    megatron: str
    hf: tuple[str, ...]
    op: Op
    shape: tuple[int, ...]
    """Of the whole parameter: its pieces stacked, all tensor-parallel ranks together."""
    dim: int | None
    """The dimension that tensor parallelism cuts, in each piece; None where every rank holds the whole."""
    key: str
    """Name in a checkpoint, which has the same parameter of all layers as one tensor."""
    layer: int | None = None
    num_layers: int = 0

    @property
    def global_shape(self) -> tuple[int, ...]:
        """The shape of `key` in a checkpoint: the layers first, where it belongs to one."""
        return self.shape if self.layer is None else (self.num_layers, *self.shape)

    def place(self, part: Rectangle) -> Rectangle:
        """Returns where a part of this parameter lies in `key`."""
        offset, sizes = part
        return part if self.layer is None else ((self.layer, *offset), (1, *sizes))

    def hf_shapes(self) -> list[tuple[int, ...]]:
        """Returns the shapes of the Hugging Face tensors."""
        rows = [0] * len(self.hf)
        for tensor, first, count in self.segments():
            if tensor is not None:
                rows[tensor] = max(rows[tensor], first + count)
        return [(number, *self.op.hf_row(self.shape[1:])) for number in rows]

    def segments(self) -> list[Segment]:
        """Returns the runs of Hugging Face rows that the rows of the parameter are, in their order."""
        return self.op.segments(self.shape[0])

    def cut(self, tp: int) -> list[list[Rectangle]]:
        """Returns the parts of each tensor-parallel rank of `tp`: one of each piece."""
        if self.dim is None:
            return [[((0,) * len(self.shape), self.shape)]] * tp
        pieces = self.op.num_pieces if self.dim == 0 else 1
        size = self.shape[self.dim] // pieces // tp
        sizes = (*self.shape[: self.dim], size, *self.shape[self.dim + 1 :])
        return [
            [(self._at((piece * tp + rank) * size), sizes) for piece in range(pieces)] for rank in range(tp)
        ]

    def _at(self, start: int) -> tuple[int, ...]:
        return tuple(start if dim == self.dim else 0 for dim in range(len(self.shape)))


def build_rules(model: ModelConfig) -> list[Rule]:
    """Returns a rule for each parameter of `model`, in the order of the export."""
    vision, language = _vision_terms(model), _language_terms(model)
    table = [
        *_fill(_VISION, vision),
        *_fill(_VISION_LAYER, vision, model.vision.depth),
        *_fill(_MERGER, vision),
        *_fill(_EMBEDDING, language),
        *_fill(_LANGUAGE_LAYER, language, model.num_layers),
        *_fill(_HEAD, language),
    ]
    return [r for r in table if not (model.tie_word_embeddings and r.megatron == OUTPUT_LAYER)]


EMBEDDING = "language_model.embedding.word_embeddings.weight"
OUTPUT_LAYER = "language_model.output_layer.weight"

# of each parameter: the change of shape, the names of its sizes, the dimension that is cut, the Hugging Face names
_Row = tuple[str, str, int | None, tuple[str, ...]]
_Table = Mapping[str, _Row]


def _layer_table(megatron: str, hf: str, rows: _Table) -> _Table:
    """Returns the rows of a layer with the beginnings that all their names have."""
    return {
        f"{megatron}.layers.{{}}.{name}": (op, sizes, dim, tuple(f"{hf}.{{}}.{tensor}" for tensor in tensors))
        for name, (op, sizes, dim, tensors) in rows.items()
    }


_VISION: _Table = {
    "vision_model.patch_embed.weight": (
        "patch",
        "hidden patch",
        None,
        ("model.visual.patch_embed.proj.weight",),
    )
}

_VISION_LAYER = _layer_table(
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

_MERGER: _Table = {
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

_EMBEDDING: _Table = {
    EMBEDDING: ("same", "vocabulary hidden", 0, ("model.language_model.embed_tokens.weight",))
}

_LANGUAGE_LAYER = _layer_table(
    "language_model.decoder",
    "model.language_model.layers",
    {
        "input_layernorm.weight": ("same", "hidden", None, ("input_layernorm.weight",)),
        "self_attention.linear_qkv.weight": (
            *("qkv", "qkv hidden", 0),
            ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        ),
        "self_attention.linear_qkv.bias": (
            *("qkv", "qkv", 0),
            ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        ),
        "self_attention.linear_proj.weight": ("same", "hidden heads", 1, ("self_attn.o_proj.weight",)),
        "pre_mlp_layernorm.weight": ("same", "hidden", None, ("post_attention_layernorm.weight",)),
        "mlp.linear_fc1.weight": (
            *("gated", "gate_up hidden", 0),
            ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ),
        "mlp.linear_fc2.weight": ("same", "hidden inner", 1, ("mlp.down_proj.weight",)),
    },
)

_HEAD: _Table = {
    "language_model.decoder.final_layernorm.weight": (
        *("same", "hidden", None),
        ("model.language_model.norm.weight",),
    ),
    OUTPUT_LAYER: ("same", "vocabulary hidden", 0, ("lm_head.weight",)),
}


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What the words of the table mean for a model."""

    ops: Mapping[str, Op]
    sizes: Mapping[str, int]


def _language_terms(model: ModelConfig) -> _Terms:
    qkv = InterleaveQKV(
        num_groups=model.num_kv_heads,
        heads_per_group=model.num_heads // model.num_kv_heads,
        head_dim=model.head_dim,
    )
    sizes = {
        "hidden": model.hidden_size,
        "heads": model.num_heads * model.head_dim,
        "qkv": (model.num_heads + 2 * model.num_kv_heads) * model.head_dim,
        "inner": model.intermediate_size,
        "gate_up": 2 * model.intermediate_size,
        "vocabulary": model.vocab_size,
    }
    return _Terms(ops={"same": Same(), "gated": Same(num_pieces=2), "qkv": qkv}, sizes=sizes)


def _vision_terms(model: ModelConfig) -> _Terms:
    vision = model.vision
    qkv = InterleaveQKV(
        num_groups=vision.num_heads, head_dim=vision.hidden_size // vision.num_heads, stacked=True
    )
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    pad = partial(Pad, size=vision.intermediate_size, padded_size=vision.padded_intermediate_size)
    ops = {
        "same": Same(),
        "padded rows": pad(dim=0, num_pieces=2),
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
        "merged": vision.hidden_size * vision.spatial_merge_size**2,
        "out": vision.out_hidden_size,
    }
    return _Terms(ops=ops, sizes=sizes)


def _fill(table: _Table, terms: _Terms, num_layers: int | None = None) -> Iterator[Rule]:
    for layer in range(num_layers or 1):
        for megatron, (op, sizes, dim, hf) in table.items():
            yield Rule(
                megatron=megatron.format(layer),
                hf=tuple(name.format(layer) for name in hf),
                op=terms.ops[op],
                shape=tuple(terms.sizes[size] for size in sizes.split()),
                dim=dim,
                key=_checkpoint_key(megatron),
                layer=None if num_layers is None else layer,
                num_layers=num_layers or 0,
            )


def _checkpoint_key(megatron: str) -> str:
    key = megatron.replace(".layers.{}.", ".layers.")
    for separate, fused in FUSED_NORM_KEYS.items():
        key = key.replace(f".layers.{separate}", f".layers.{fused}")
    return key
