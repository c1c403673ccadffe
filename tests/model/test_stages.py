"""The split of layers over pipeline stages: the least of all splits, and sensible for the published models."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import pytest

from megatron_omr import flops
from megatron_omr.config import ParallelConfig
from megatron_omr.model.stages import (
    IMAGE_GRID,
    IMAGE_TOKEN_SHARE,
    balance_layers,
    end_costs,
    split_layers,
    stage_costs,
)
from megatron_omr.plan.shapes import PUBLISHED, published_shape

NAMES = {name.split("-")[2]: name for name in PUBLISHED if name.startswith("Qwen2.5-VL")}


def test_costs_of_the_ends_are_those_of_the_flops_model() -> None:
    model = published_shape(NAMES["7B"])
    image_tokens = prod(IMAGE_GRID) // 4
    layers = flops.language_layers_flops(model, [round(image_tokens / IMAGE_TOKEN_SHARE)])
    whole = flops.language_forward_flops(model, [round(image_tokens / IMAGE_TOKEN_SHARE)])
    tower, head = end_costs(model)
    assert tower * layers == pytest.approx(28 * flops.vision_forward_flops(model, [IMAGE_GRID]))
    assert head * layers == pytest.approx(28 * (whole - layers))


def _splits(num_layers: int, num_chunks: int) -> Iterator[tuple[int, ...]]:
    if num_chunks == 1:
        yield (num_layers,)
        return
    for first in range(1, num_layers - num_chunks + 2):
        yield from ((first, *rest) for rest in _splits(num_layers - first, num_chunks - 1))


@pytest.mark.parametrize(("pp", "vp"), [(2, 1), (3, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("ends", [(0.0, 0.0), (4.2, 2.3), (12.5, 4.0), (1.1, 1.4), (0.3, 9.0)])
def test_no_split_has_a_cheaper_slowest_stage(pp: int, vp: int, ends: tuple[float, float]) -> None:
    tower, head = ends
    for num_layers in range(pp * vp, 13):
        layers = balance_layers(num_layers, pp=pp, vp=vp, tower=tower, head=head)
        assert len(layers) == pp * vp and sum(layers) == num_layers and min(layers) >= 1
        least = min(
            max(stage_costs(split, pp=pp, tower=tower, head=head)) for split in _splits(num_layers, pp * vp)
        )
        assert max(stage_costs(layers, pp=pp, tower=tower, head=head)) == pytest.approx(least)


def test_chunks_of_a_stage_cost_about_the_same() -> None:
    layers = balance_layers(28, pp=2, vp=2, tower=4.2, head=2.3)
    assert layers == (4, 9, 9, 6)  # with tower and head: 8.2 and 9, 9 and 8.3
    assert balance_layers(7, pp=2, vp=1, tower=0, head=0) == (3, 4)  # the later stage keeps fewer activations


PUBLISHED_SPLITS = [  # as docs/layouts.md lists them
    ("3B", ParallelConfig(tp=2, sp=True), (36,)),
    ("3B", ParallelConfig(tp=2, pp=2), (14, 22)),
    ("7B", ParallelConfig(tp=4, cp=2, sp=True), (28,)),
    ("7B", ParallelConfig(tp=4, pp=2), (13, 15)),
    ("7B", ParallelConfig(tp=4, pp=2, vp=2), (4, 9, 9, 6)),
    ("7B", ParallelConfig(tp=2, pp=4), (4, 9, 9, 6)),
    ("32B", ParallelConfig(tp=8, pp=2), (32, 32)),
    ("32B", ParallelConfig(tp=8, pp=4), (15, 17, 17, 15)),
    ("32B", ParallelConfig(tp=8, pp=4, vp=2), (6, 8, 8, 8, 9, 9, 9, 7)),
    ("72B", ParallelConfig(tp=8, pp=4, cp=2, sp=True), (19, 21, 21, 19)),
    ("72B", ParallelConfig(tp=8, pp=4, vp=2, sp=True), (9, 10, 10, 10, 10, 11, 11, 9)),
    ("72B", ParallelConfig(tp=8, pp=8), (9, 10, 10, 10, 10, 11, 11, 9)),
]


@pytest.mark.parametrize(("size", "parallel", "layers"), PUBLISHED_SPLITS)
def test_published_models_are_split(size: str, parallel: ParallelConfig, layers: tuple[int, ...]) -> None:
    model = published_shape(NAMES[size])
    parallel.check_model(model)
    assert split_layers(model, parallel) == layers
    tower, head = end_costs(model)
    costs = stage_costs(layers, pp=parallel.pp, tower=tower, head=head)
    assert max(costs) < sum(costs) / parallel.pp + 1  # less than a layer above the mean


def test_layers_of_the_config_override_the_split() -> None:
    parallel = ParallelConfig(pp=2, layers=(10, 18))
    assert split_layers(published_shape(NAMES["7B"]), parallel) == (10, 18)
