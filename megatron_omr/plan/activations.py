"""Counts the bytes that a forward pass keeps for backward, by a closed formula. Pure arithmetic.

Legend: e bytes of an element; on one rank of a layer: H hidden, A width of the queries, K of the keys, D a head, F the
feed-forward layer (half of it where it is gated), n heads; s ranks that share norms and residuals (tp under SP, else
1). All byte counts are per token (or patch) of the rank.

Exact to the byte for the plain torch kernels (tests/model/plan/test_activations.py). Transformer Engine's keep the
same, by reading, but for rotary tables (`fused_rotary`); under context parallelism they pass keys round, where ours
gather them (`gathered`) and keep masks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from megatron_omr.model_config import ModelConfig

_INDEX = 8  # bytes of an int64
_STATISTIC = 4  # bytes of a float32
_TAPS = 4  # learned positions that a patch lies between


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Widths of one transformer layer on one rank, in elements."""

    hidden: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    ffn: int
    shards: int  # of norms and residuals
    gated: bool = True
    layer_norm: bool = False  # with a mean, else RMS norms
    qk_norm: bool = False
    fused_rotary: bool = False  # Transformer Engine's kernel, which keeps one table for all layers
    experts: int = 0  # in place of the MLP, of which `ffn` is then the width of one
    chosen: int = 0  # experts of a token

    def norms(self, element: int) -> float:
        """Two norms: each keeps its input, normalised or not, and statistics, and the linear layer its own input."""
        return 2 * (2 * self.hidden * element + _statistics(element, self.layer_norm)) / self.shards

    def head_norms(self, element: int) -> int:
        """Norms of queries and keys: each keeps the normalised input, and the scale of each head."""
        width = self.queries + self.keys
        return self.qk_norm * (width * element + width // self.head_dim * _STATISTIC)

    def rope(self, element: int) -> int:
        """Cosines and sines, for queries and for keys, made again in every layer."""
        return 0 if self.fused_rotary else 4 * self.head_dim * element

    def attention(self, element: int, *, reordered: bool, gathered: int = 1) -> int:
        """Queries, keys, values, their projection, the output and the sum of each row.

        Args:
            reordered: sequences are gathered into buckets of similar length, which copies queries, keys and values.
            gathered: context-parallel ranks whose keys and values a rank keeps.
        """
        queries, keys = element * self.queries, element * self.keys
        rows_and_output = _STATISTIC * self.heads + queries
        if gathered > 1:
            return queries + 2 * gathered * keys + rows_and_output + reordered * queries
        if reordered:
            return queries + 2 * keys + rows_and_output + queries
        # the values are a view that keeps the projection of queries, keys and values
        return queries + keys + (queries + 2 * keys) + rows_and_output

    def mlp(self, element: int) -> float:
        """The two halves that SwiGLU takes, or the input of GELU, and what it makes of them.

        Of experts an estimate, for tokens that spread evenly: their copies of the token, gate and linear half, what
        SwiGLU makes of these before and after the token's weight; and the router's logits, weights and choice.
        """
        if self.experts:
            router = self.experts * (2 * _STATISTIC + 2) / self.shards
            return self.chosen * (self.hidden / self.shards + 4 * self.ffn) * element + router
        return (3 if self.gated else 2) * self.ffn * element

    def saved(self, element: int, recompute: str, *, reordered: bool = False, gathered: int = 1) -> float:
        """Returns the bytes that the layer keeps with this recomputation: "none", "mlp" or "full"."""
        if recompute == "full":
            return self.hidden * element / self.shards
        kept = self.norms(element) + self.head_norms(element) + self.rope(element)
        kept += self.attention(element, reordered=reordered, gathered=gathered)
        return kept if recompute == "mlp" else kept + self.mlp(element)


def language_layer(model: ModelConfig, *, tp: int, sp: bool, fused_rotary: bool = False) -> Layer:
    return Layer(
        hidden=model.hidden_size,
        queries=model.num_heads * model.head_dim // tp,
        keys=model.num_kv_heads * model.head_dim // tp,
        heads=model.num_heads // tp,
        head_dim=model.head_dim,
        # etp changes nothing: it divides the width, and gathers as many tokens more
        ffn=model.moe.intermediate_size // tp if model.moe else model.intermediate_size // tp,
        experts=model.moe.num_experts if model.moe else 0,
        chosen=model.moe.num_chosen if model.moe else 0,
        shards=tp if sp else 1,
        qk_norm=model.qk_norm,
        fused_rotary=fused_rotary,
    )


def vision_layer(model: ModelConfig, *, tp: int, fused_rotary: bool = False) -> Layer:
    vision = model.vision
    return Layer(
        hidden=vision.hidden_size,
        queries=vision.hidden_size // tp,
        keys=vision.hidden_size // tp,
        heads=vision.num_heads // tp,
        head_dim=vision.hidden_size // vision.num_heads,
        ffn=vision.padded_intermediate_size // tp,
        shards=1,
        gated=vision.gated_mlp,
        layer_norm=vision.layer_norm,
        fused_rotary=fused_rotary,
    )


def saved_by_layers(
    layer: Layer,
    num_layers: int,
    element: int,
    recompute: str,
    *,
    reordered: bool = False,
    gathered: int = 1,
) -> float:
    """Returns the bytes a token of a stage's layers, with what they keep once: order in buckets, rotary angles."""
    each = layer.saved(element, recompute, reordered=reordered, gathered=gathered)
    # the angles that "full" and the fused kernel keep; the order of queries, and of gathered keys
    table = layer.head_dim * _STATISTIC if recompute == "full" or layer.fused_rotary else 0
    order = 0 if recompute == "full" else _INDEX * (reordered + (gathered if gathered > 1 else 0))
    return num_layers * each + table + order if num_layers else 0.0


def saved_by_tower(
    model: ModelConfig,
    element: int,
    recompute: str,
    *,
    tp: int,
    freeze: Collection[str] = (),
    fused_rotary: bool = False,
) -> float:
    """Returns the bytes a patch of the tower and the projectors, for images of whole windows.

    What is in front of the first trained part keeps nothing.
    """
    vision, layer = model.vision, vision_layer(model, tp=tp, fused_rotary=fused_rotary)
    merge, statistics = vision.spatial_merge_size**2, _statistics(element, vision.layer_norm)
    norm = 2 * vision.hidden_size * element + statistics
    behind_gelu = 2 * vision.hidden_size // tp * element  # and before it: 4 x hidden for 4 patches
    order = _INDEX / merge if vision.window_size else 0
    # features are what the next layer keeps, too
    features = vision.num_levels * (vision.hidden_size * element + statistics / merge + behind_gelu)
    projector = norm + behind_gelu + order + features
    if "vision" in freeze:  # then only the mergers keep their inputs
        inputs = vision.num_levels * vision.hidden_size * element
        return 0.0 if "projector" in freeze else projector + inputs
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * element
    if vision.num_position_embeddings:
        patch += _TAPS * (_INDEX + _STATISTIC)
    return patch + saved_by_layers(layer, vision.depth, element, recompute) + projector


def _statistics(element: int, layer_norm: bool) -> int:
    """Returns the bytes of a row's statistics; those of torch's layer norm have the precision of the model."""
    return 2 * element if layer_norm else _STATISTIC


def saved_by_features(model: ModelConfig, element: int, recompute: str, *, shards: int) -> float:
    """Returns the bytes a token of deepstack features, which recomputed layers take."""
    return model.vision.num_levels * model.hidden_size * element / shards if recompute == "full" else 0.0


def saved_by_embedding(*, tp: int, cp: int, images: bool) -> int:
    """Returns the bytes a token: ids, which of them another rank has, places of images, and which rank has a token."""
    return cp * (2 * _INDEX + (tp > 1) + images)


def saved_by_head(model: ModelConfig, element: int, *, shards: int) -> float:
    """Returns the bytes a token of the final norm and of the output layer's input."""
    return (2 * model.hidden_size * element + _STATISTIC) / shards


def saved_by_logprobs(model: ModelConfig, element: int, *, tp: int, cp: int, with_entropy: bool) -> int:
    """Returns the bytes a token: logits, four or three numbers of the row, its label and whose it is, its place."""
    statistics = (3 + with_entropy) * _STATISTIC
    return model.vocab_size // tp * element + statistics + _INDEX + 1 + (_INDEX * cp if cp > 1 else 0)


def causal_masks(lengths: Sequence[int], element: int, *, cp: int) -> int:
    """Returns the bytes a layer of plain attention's masks under context parallelism, for unpadded buckets."""
    return element * sum(length // cp * length for length in lengths) if cp > 1 else 0


def count_in_flight(
    weights: Sequence[float], *, stage: int, pp: int, num_micro_batches: int
) -> tuple[int, ...]:
    """Returns the micro-batches in flight of each model chunk, at the moment when their activations are largest.

    Args:
        weights: bytes of one micro-batch in each model chunk of this stage; several chunks are interleaved.
    """
    vp = len(weights)
    total = num_micro_batches * vp
    warmup = pp - stage - 1 if vp == 1 else 2 * (pp - stage - 1) + (vp - 1) * pp
    order = [
        chunk
        for group in range(0, num_micro_batches, pp)
        for chunk in range(vp)
        for _ in range(min(pp, num_micro_batches - group))
    ]
    held, peak, most = [0] * vp, [0] * vp, -1.0
    for step in range(min(total, warmup + 2 * vp * pp)):  # from then on rounds repeat
        held[order[step]] += 1
        size = sum(n * w for n, w in zip(held, weights, strict=True))
        if size > most:
            peak, most = list(held), size
        if step >= warmup:  # backward begins, from the last chunk
            held[vp - 1 - order[step - warmup]] -= 1
    return tuple(peak)
