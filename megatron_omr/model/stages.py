"""Splits the language model's layers over the pipeline, so that its slowest stage has as little to compute as possible.

With parallel.vp chunks a stage, chunk c of the pp x vp chunks is on stage c % pp. The first chunk has the vision tower,
the last one the output layer; both count in units of one language layer, as in flops.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from megatron_omr import flops
from megatron_omr.config import ParallelConfig
from megatron_omr.model_config import ModelConfig

IMAGE_TOKEN_SHARE = 3 / 8
"""Share of image tokens among all tokens that the split assumes; the step of docs/flops.md has 0.37."""
IMAGE_GRID = (1, 32, 32)
"""Time, height and width in patches of the images that it assumes: 448 x 448 pixels, 256 tokens."""


def split_layers(model: ModelConfig, parallel: ParallelConfig) -> tuple[int, ...]:
    """Returns the language layers of each chunk, in the order of the layers: `parallel.layers`, else by FLOPs.

    The layout must hold the model (ParallelConfig.check_model). Stage s has the chunks `[s :: parallel.pp]`.
    """
    tower, head = end_costs(model)
    return parallel.layers or balance_layers(
        model.num_layers,
        pp=parallel.pp,
        vp=parallel.vp,
        tower=tower,
        head=head,
        first=max(1, model.vision.num_levels),
    )


def end_costs(model: ModelConfig) -> tuple[float, float]:
    """Returns the FLOPs of vision tower and output layer, each in units of one language layer."""
    image_tokens = math.prod(IMAGE_GRID) // model.vision.spatial_merge_size**2
    tokens = [round(image_tokens / IMAGE_TOKEN_SHARE)]
    layers = flops.language_layers_flops(model, tokens)
    head = flops.language_forward_flops(model, tokens) - layers
    tower = flops.vision_forward_flops(model, [IMAGE_GRID])
    return tower * model.num_layers / layers, head * model.num_layers / layers


def balance_layers(
    num_layers: int, *, pp: int, vp: int, tower: float, head: float, first: int = 1
) -> tuple[int, ...]:
    """Returns the layers of each chunk, at least one, such that the most expensive stage costs as little as possible.

    Within a stage its chunks cost about the same. Of equal stages the later gets more: it keeps fewer micro-batches'
    activations.

    Args:
        tower, head: costs of what is on the first and the last chunk beside layers, in layers.
        first: layers that the first chunk has at least.
    """
    layers = [first] + [1] * (pp * vp - 1)
    costs = [float(number) for number in layers]
    costs[0] += tower
    costs[-1] += head
    for _ in range(num_layers - sum(layers)):  # layers cost the same, so the cheapest is always right
        stage = min(reversed(range(pp)), key=lambda stage: sum(costs[stage::pp]))
        chunk = min(reversed(range(stage, pp * vp, pp)), key=lambda chunk: costs[chunk])
        layers[chunk] += 1
        costs[chunk] += 1
    return tuple(layers)


def stage_costs(layers: Sequence[int], *, pp: int, tower: float, head: float) -> list[float]:
    """Returns the cost of each stage, in language layers."""
    costs = [float(sum(layers[stage::pp])) for stage in range(pp)]
    costs[0] += tower
    costs[-1] += head
    return costs
