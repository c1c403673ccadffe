"""FLOPs of a training step, for MFU: arithmetic on the model's shape and the batch's lengths.

A matrix product of [m, k] and [k, n] costs 2mkn; backward costs twice the forward, so a step costs three
forwards. Counted: language model without the embedding lookup, causal attention (half of the square), the
vision tower with its real windows, its gated MLP, and the merger on merged patches. Not counted: norms,
softmax, recomputation. Sum of squares of the *sequence* lengths, since attention never crosses samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_omr.model_config import ModelConfig


def language_forward_flops(
    model: ModelConfig, seq_lens: Sequence[int], prefix_lens: Sequence[int] | None = None
) -> float:
    """Returns the FLOPs of one forward of the language model over packed sequences of these lengths (tokens).

    `prefix_lens`: tokens of another sequence that each sequence attends to besides its own.
    """
    prefix_lens = prefix_lens or [0] * len(seq_lens)
    hidden, kv = model.hidden_size, model.num_kv_heads * model.head_dim
    weights = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * model.intermediate_size  # q, o; k, v; MLP
    linear = 2 * sum(seq_lens) * (model.num_layers * weights + hidden * model.vocab_size)
    # scores and weighted sum: 2 products of [L, L/2 + prefix] and [head_dim] a head
    pairs = sum(length**2 + 2 * length * prefix for length, prefix in zip(seq_lens, prefix_lens, strict=True))
    attention = 2 * model.num_layers * hidden * pairs
    return linear + attention


def vision_forward_flops(model: ModelConfig, grids: Sequence[tuple[int, int, int]]) -> float:
    """Returns the FLOPs of one forward of the vision tower over images of `grids` (time, height, width) patches."""
    v = model.vision
    patches = [t * h * w for t, h, w in grids]
    total = sum(patches)
    merge = v.spatial_merge_size**2
    patch_dim = v.in_channels * v.temporal_patch_size * v.patch_size**2
    blocks = v.depth * (4 * v.hidden_size**2 + 3 * v.hidden_size * v.intermediate_size)
    merger = (merge * v.hidden_size) ** 2 + merge * v.hidden_size * v.out_hidden_size
    linear = 2 * total * (patch_dim * v.hidden_size + blocks) + 2 * total // merge * merger
    window = (v.window_size // v.patch_size) ** 2
    full = len(v.fullatt_block_indexes)
    spans = sum(
        t * (full * (h * w) ** 2 + (v.depth - full) * h * w * min(window, h * w)) for t, h, w in grids
    )
    return linear + 4 * v.hidden_size * spans


def train_step_flops(
    model: ModelConfig,
    seq_lens: Sequence[int],
    grids: Sequence[tuple[int, int, int]],
    prefix_lens: Sequence[int] | None = None,
) -> float:
    """Returns the FLOPs of forward and backward over these sequences and images."""
    language = language_forward_flops(model, seq_lens, prefix_lens)
    return 3 * (language + vision_forward_flops(model, grids))


PEAK_BF16_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
}


def peak_flops(device_name: str) -> float | None:
    """Returns the dense BF16 FLOP/s of a GPU by its name; None when unknown (a CPU, another card)."""
    return next((peak for key, peak in PEAK_BF16_FLOPS.items() if key in device_name), None)
