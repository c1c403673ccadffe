"""The FLOPs that other projects count for a training step of Qwen2.5-VL, by their formulas, for comparison.

Written from reading their sources (November 2026); each docstring names the file, and how it differs from what the
model computes. All take lengths of sequences in tokens, and sizes of images in patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from megatron_omr.model_config import ModelConfig

Grid = Sequence[int]


def verl(model: ModelConfig, seq_lens: Sequence[int], grids: Sequence[Grid]) -> float:
    """verl, `verl/utils/flops_counter.py`, one function for Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

    The embedding counts as a product, the tower's MLP as not gated, all of its layers attend to whole images, and the
    merger runs for every patch rather than for every four.
    """
    v = model.vision
    weights = _patch_embed(model) + v.depth * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size)
    vision = 6 * (weights + _merger(model)) * _patches(grids) + 12 * v.depth * v.hidden_size * _squares(grids)
    return _language(model, seq_lens, heads=2, causal=True) + vision


def megatron_bridge(model: ModelConfig, seq_lens: Sequence[int], grids: Sequence[Grid]) -> float:
    """Megatron-Bridge, `training/utils/flop_utils.py`, with squares per image.

    Right for its language model and for Qwen3-VL's tower. Here the MLP is gated, which it does not know, most layers
    attend to windows, and the patch embedding is left out.
    """
    v = model.vision
    weights = v.depth * (4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size)
    linear = 6 * weights * _patches(grids) + 6 * _merger(model) * (_patches(grids) // v.spatial_merge_size**2)
    vision = linear + 12 * v.depth * v.hidden_size * _squares(grids)
    return _language(model, seq_lens, heads=1, causal=True) + vision


def lmms_engine(model: ModelConfig, seq_lens: Sequence[int], grids: Sequence[Grid]) -> float:
    """lmms-engine, `src/lmms_engine/models/utils.py`; the released recipe's framework.

    The language model alone: its embedding counts as a product, its attention as not causal, images as nothing.
    """
    return _language(model, seq_lens, heads=2, causal=False)


def veomni(model: ModelConfig, seq_lens: Sequence[int], grids: Sequence[Grid]) -> float:
    """VeOmni, `veomni/utils/count_flops.py`.

    Attention of the language model counts as not causal. The tower's MLP is gated and its windows are known, but they
    are taken for 112 x 112 patches where they are 112 x 112 pixels (8 x 8 patches); the merger runs for every patch,
    and the patch embedding is left out.
    """
    v = model.vision
    weights = v.depth * (4 * v.hidden_size**2 + 3 * v.hidden_size * v.intermediate_size)
    full = len(v.fullatt_block_indexes)
    pairs = full * _squares(grids) + (v.depth - full) * _patches(grids) * v.window_size**2
    vision = 6 * (weights + _merger(model)) * _patches(grids) + 12 * v.hidden_size * pairs
    return _language(model, seq_lens, heads=1, causal=False) + vision


PEERS: dict[str, Callable[[ModelConfig, Sequence[int], Sequence[Grid]], float]] = {
    "verl": verl,
    "Megatron-Bridge": megatron_bridge,
    "lmms-engine": lmms_engine,
    "VeOmni": veomni,
}


def _language(model: ModelConfig, seq_lens: Sequence[int], *, heads: int, causal: bool) -> float:
    """Returns forward and backward of the language model; `heads` counts matrices of the vocabulary's size."""
    hidden, kv = model.hidden_size, model.num_kv_heads * model.head_dim
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * model.intermediate_size
    weights = model.num_layers * layer + heads * model.vocab_size * hidden
    squares = sum(length**2 for length in seq_lens)
    return 6 * weights * sum(seq_lens) + (6 if causal else 12) * squares * hidden * model.num_layers


def _patch_embed(model: ModelConfig) -> int:
    v = model.vision
    return v.hidden_size * v.in_channels * v.temporal_patch_size * v.patch_size**2


def _merger(model: ModelConfig) -> int:
    merged = model.vision.hidden_size * model.vision.spatial_merge_size**2
    return merged * (merged + model.vision.out_hidden_size)


def _patches(grids: Sequence[Grid]) -> int:
    return sum(math.prod(grid) for grid in grids)


def _squares(grids: Sequence[Grid]) -> int:
    return sum(t * (h * w) ** 2 for t, h, w in grids)
