"""FLOPs of a training step, for MFU: arithmetic on the model's shape and the batch's lengths.

A matrix product of [m, k] and [k, n] costs 2mkn; its backward pass costs two such products, one where the left input
needs no gradient. Counted: the language model without the embedding lookup, causal attention (half of the square), the
vision tower with its real windows, and the mergers on merged patches. Not counted: norms, softmax, rotary
tables. Squares are those of the *sequence* lengths, since attention never crosses samples. What recomputation adds is a
function of its own: it is work of the hardware, not of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from megatron_omr.families.shapes import VisionConfig
from megatron_omr.model_config import ModelConfig, Part

if TYPE_CHECKING:
    from data_pipeline.loader.cost import CostModel

Grid = Sequence[int]
"""Time, height and width of an image in patches."""


def language_forward_flops(
    model: ModelConfig, seq_lens: Sequence[int], prefix_lens: Sequence[int] | None = None
) -> float:
    """Returns the FLOPs of one forward of the language model over packed sequences of these lengths (tokens).

    `prefix_lens`: tokens of another sequence that each sequence attends to besides its own.
    """
    head = 2 * sum(seq_lens) * model.hidden_size * model.vocab_size
    return head + language_layers_flops(model, seq_lens, prefix_lens)


def language_layers_flops(
    model: ModelConfig, seq_lens: Sequence[int], prefix_lens: Sequence[int] | None = None
) -> float:
    """Returns the FLOPs of one forward of the language model's layers, without the head."""
    queries, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    projections = 2 * model.hidden_size * (queries + kv)  # q, o; k, v
    linear = 2 * sum(seq_lens) * model.num_layers * projections + language_mlp_flops(model, sum(seq_lens))
    return linear + attention_flops(model, seq_lens, prefix_lens)


def attention_flops(
    model: ModelConfig, seq_lens: Sequence[int], prefix_lens: Sequence[int] | None = None
) -> float:
    """Returns the FLOPs of one forward of the language model's products of queries, keys and values."""
    prefix_lens = prefix_lens or [0] * len(seq_lens)
    # scores and weighted sum: 2 products of [L, L/2 + prefix] and [head_dim] a head
    pairs = sum(length**2 + 2 * length * prefix for length, prefix in zip(seq_lens, prefix_lens, strict=True))
    return 2 * model.num_layers * model.num_heads * model.head_dim * pairs


def language_mlp_flops(model: ModelConfig, num_tokens: int) -> float:
    """Returns the FLOPs of one forward of the gated MLPs of all layers; of experts, of those that a token has."""
    hidden, moe = model.hidden_size, model.moe
    if moe is None:
        return 6 * num_tokens * model.num_layers * hidden * model.intermediate_size
    number = len(moe.layers)
    width = number * moe.num_chosen * moe.intermediate_size
    width += (model.num_layers - number) * model.intermediate_size
    router = 2 * num_tokens * number * hidden * moe.num_experts
    return 6 * num_tokens * hidden * width + router


def vision_forward_flops(model: ModelConfig, grids: Sequence[Grid]) -> float:
    """Returns the FLOPs of one forward of the vision tower over images of `grids` (time, height, width) patches."""
    tower = patch_embed_flops(model, grids) + vision_layers_flops(model, grids)
    return tower + projector_flops(model, grids)


def projector_flops(model: ModelConfig, grids: Sequence[Grid]) -> float:
    """Returns the FLOPs of one forward of the mergers: one behind the tower, and one for each level."""
    v, merge = model.vision, model.vision.spatial_merge_size**2
    weights = (merge * v.hidden_size) ** 2 + merge * v.hidden_size * v.out_hidden_size
    return 2 * (1 + v.num_levels) * _count_patches(grids) // merge * weights


def patch_embed_flops(model: ModelConfig, grids: Sequence[Grid]) -> float:
    """Returns the FLOPs of one forward of the projection of pixels; pixels need no gradient."""
    v = model.vision
    return 2 * _count_patches(grids) * v.in_channels * v.temporal_patch_size * v.patch_size**2 * v.hidden_size


def vision_layers_flops(model: ModelConfig, grids: Sequence[Grid]) -> float:
    """Returns the FLOPs of one forward of the vision tower's layers."""
    v = model.vision
    weights = 4 * v.hidden_size**2 + (3 if v.gated_mlp else 2) * v.hidden_size * v.intermediate_size
    pairs = sum(t * (v.num_full_layers * (h * w) ** 2 + _window_pairs(v, h, w)) for t, h, w in grids)
    return 2 * _count_patches(grids) * v.depth * weights + 4 * v.hidden_size * pairs


def train_step_flops(
    model: ModelConfig,
    seq_lens: Sequence[int],
    grids: Sequence[Grid],
    prefix_lens: Sequence[int] | None = None,
    *,
    freeze: Collection[Part] = (),
) -> float:
    """Returns the FLOPs of forward and backward over these sequences and images.

    Frozen parts have no gradients of weights, and those of inputs end at the first part that is trained, whose first
    layer computes them for nothing.
    """
    forward = language_forward_flops(model, seq_lens, prefix_lens) + vision_forward_flops(model, grids)
    total = 3 * forward - patch_embed_flops(model, grids)
    if "vision" in freeze:
        total -= patch_embed_flops(model, grids) + 2 * vision_layers_flops(model, grids)
    if "projector" in freeze:
        total -= (2 if "vision" in freeze else 1) * projector_flops(model, grids)
    if "language" in freeze:
        total -= language_forward_flops(model, seq_lens, prefix_lens)
        total += attention_flops(model, seq_lens, prefix_lens)
    return total


def build_cost_model(model: ModelConfig, freeze: Collection[Part] = ()) -> CostModel:
    """Returns the parts of a step's FLOPs, for balancing samples over ranks; exact for images of whole windows."""
    from data_pipeline.loader.cost import CostModel  # brings torch, which a planner does without

    one, two = (train_step_flops(model, [length], [], freeze=freeze) for length in (1, 2))
    side = model.vision.window_size // model.vision.patch_size or model.vision.spatial_merge_size
    window, pair = (train_step_flops(model, [], [(1, n * side, side)], freeze=freeze) for n in (1, 2))
    token_pair = (two - 2 * one) / 2
    patch_pair = (pair - 2 * window) / (2 * side**4)
    return CostModel(
        token=one - token_pair,
        token_pair=token_pair,
        patch=window / side**2 - patch_pair * side**2,
        patch_pair=patch_pair,
    )


def recomputed_flops(
    model: ModelConfig,
    seq_lens: Sequence[int],
    grids: Sequence[Grid],
    prefix_lens: Sequence[int] | None = None,
    *,
    language: Literal["none", "mlp", "full"],
    vision: Literal["none", "full"],
) -> float:
    """Returns the FLOPs that the backward pass of a step repeats of the forward pass, beside train_step_flops().

    Args:
        language: `compute.recompute`: the MLPs, or all of the layers. The head is never computed again.
        vision: `compute.recompute_vision`: all of the layers. Patch embedding and merger are never computed again.
    """
    again = {
        "none": 0.0,
        "mlp": language_mlp_flops(model, sum(seq_lens)),
        "full": language_layers_flops(model, seq_lens, prefix_lens),
    }[language]
    return again + (vision_layers_flops(model, grids) if vision == "full" else 0.0)


def _count_patches(grids: Sequence[Grid]) -> int:
    return sum(t * h * w for t, h, w in grids)


def _window_pairs(v: VisionConfig, height: int, width: int) -> int:
    """Returns the pairs of patches that attend to each other in all layers with windows."""
    if not v.window_size:
        return 0
    side = v.window_size // v.patch_size
    return (v.depth - v.num_full_layers) * _sum_of_squares(height, side) * _sum_of_squares(width, side)


def _sum_of_squares(length: int, part: int) -> int:
    """Returns the sum of the squares of the parts of a length: as many of `part` as fit, and the rest."""
    return length // part * part**2 + (length % part) ** 2


PEAK_BF16_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
}
"""By a part of the device's name; the first that fits counts."""


def peak_flops(device_name: str) -> float | None:
    """Returns the dense BF16 FLOP/s of a GPU by its name; None when unknown (a CPU, another card)."""
    return next((peak for key, peak in PEAK_BF16_FLOPS.items() if key in device_name), None)
