"""Weights, gradients and optimizer states: the formula against the real model, built on the meta device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_omr.config import OptimConfig, ParallelConfig
from megatron_omr.dtypes import Precision
from megatron_omr.plan.shapes import PUBLISHED, published_shape
from megatron_omr.plan.task import list_chunks
from megatron_omr.plan.weights import StaticBytes, count_static, list_own, overlap_bucket_size
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.heavy

WORLD = 1_024
LAYOUTS = {
    "3B": [ParallelConfig(), ParallelConfig(tp=2, cp=2, sp=True), ParallelConfig(tp=2, pp=4)],
    "7B": [
        ParallelConfig(tp=4, cp=2, sp=True),
        ParallelConfig(tp=2, pp=4, cp=4, sp=True),
        ParallelConfig(tp=4, pp=2, vp=2),
    ],
    "32B": [ParallelConfig(tp=8, pp=2, sp=True), ParallelConfig(tp=4, pp=8)],
    "2B": [ParallelConfig(tp=2, cp=2, sp=True), ParallelConfig(tp=2, pp=4)],
    "4B": [ParallelConfig(tp=8, sp=True)],
    "8B": [ParallelConfig(tp=4, cp=2, sp=True), ParallelConfig(tp=2, pp=2, vp=2)],
    "72B": [
        ParallelConfig(tp=8, pp=4, cp=2, sp=True),
        ParallelConfig(tp=8, pp=4, vp=5, layers=(3, *[4] * 18, 5)),
    ],
}
CASES = [
    (name, layout)
    for name in PUBLISHED
    if published_shape(name).moe is None
    for layout in LAYOUTS[name.split("-")[2]]
]


def test_formula_is_exact_for_every_stage_of_1024_ranks() -> None:
    measured, expected = run_ranks(_measure, 1, timeout=600)[0], [_formula(*case) for case in _ranks()]
    assert measured == expected


def _ranks() -> list[tuple[str, ParallelConfig, Precision, tuple[str, ...], int, int]]:
    """Lists the first rank of each pipeline stage; of some layouts also other shards, float32, and frozen parts."""
    first = [(name, layout, "bf16", (), stage, 0) for name, layout in CASES for stage in range(layout.pp)]
    shards = [(*CASES[0], "bf16", (), 0, shard) for shard in (1, 511, 1_023)]
    fp32 = [(*CASES[2], "fp32", (), stage, 0) for stage in (0, 3)]
    frozen = [
        (*CASES[3], "bf16", parts, 0, 0) for parts in (("vision",), ("vision", "projector"), ("language",))
    ]
    overlapping = [
        (name, replace(layout, overlap=True), "bf16", (), stage, 3)
        for name, layout in (CASES[1], CASES[2], CASES[5])
        for stage in range(min(layout.pp, 2))
    ]
    return first + shards + fp32 + frozen + overlapping


def _measure() -> list[StaticBytes]:
    from tests.helpers.static_bytes import measure_static

    return [
        measure_static(
            published_shape(name),
            layout,
            world_size=WORLD,
            rank=stage * WORLD // layout.pp + shard * layout.tp,
            precision=precision,
            optim=OptimConfig(freeze=freeze),
        )
        for name, layout, precision, freeze, stage, shard in _ranks()
    ]


def _formula(
    name: str, layout: ParallelConfig, precision: Precision, freeze: tuple[str, ...], stage: int, shard: int
) -> StaticBytes:
    model = published_shape(name)
    num_shards = WORLD // layout.tp // layout.pp
    return count_static(
        [list_own(model, chunk, layout) for chunk in list_chunks(model, layout)[stage]],
        element=4 if precision == "fp32" else 2,
        num_shards=num_shards,
        shard=shard,
        freeze=freeze,
        bucket_size=overlap_bucket_size(num_shards // layout.cp) if layout.overlap else None,
    )
