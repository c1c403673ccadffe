"""Weights, gradients and optimizer states of models with experts: the plan against the real model, rank by rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from launch.plan_command import build_layout, build_sft_task
from launch.recipes.clusters import RECIPE_SITES
from launch.recipes.sft import SFT_RECIPES
from megatron_omr.config import OptimConfig, ParallelConfig
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.config import AssumeConfig
from megatron_omr.plan.memory import plan_memory
from megatron_omr.plan.shapes import published_shape
from megatron_omr.plan.task import list_chunks
from megatron_omr.plan.weights import StaticBytes, count_static, list_own, overlap_bucket_size
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.heavy

Place = tuple[ModelConfig, ParallelConfig, int, int]  # the last two: processes, rank
SMALL = [
    (ParallelConfig(pp=2, vp=2, ep=2), 8),
    (ParallelConfig(tp=2, sp=True, cp=2, ep=2, etp=1), 8),
    (ParallelConfig(tp=4, sp=True, ep=2, etp=2), 8),
    # buckets that five ranks cannot divide evenly
    (ParallelConfig(ep=2, overlap=True), 10),
]
RECIPES = {
    "qwen3_vl_30b_a3b_sft": (0,),
    "qwen3_vl_30b_a3b_sft_1024": (0,),
    "qwen3_vl_235b_a22b_sft": range(8),
    "qwen3_vl_235b_a22b_sft_1024": (0, 7),
}
"""Stages of which the first rank is measured."""


def test_formula_is_exact_for_every_rank_of_small_worlds() -> None:
    places = list(_list_small())
    assert run_ranks(_measure, 1, places, timeout=300)[0] == [_formula(*place) for place in places]


def test_plans_of_the_recipes_are_exact() -> None:
    places, planned = [], []
    for name, stages in RECIPES.items():
        config = SFT_RECIPES[name]()
        task = build_sft_task(config, AssumeConfig(), shape=RECIPE_SITES[name].shape)
        dp = config.parallel.dp(config.processes)
        memory = plan_memory(task, build_layout(config), dp=dp, assume=AssumeConfig())
        for stage in stages:
            rank = stage * config.processes // config.parallel.pp
            places.append((task.model, config.parallel, config.processes, rank))
            planned.append((memory[stage].weights, memory[stage].gradients, memory[stage].optimizer))
    measured = run_ranks(_measure, 1, places, timeout=300)[0]
    assert [(found.weights, found.gradients, found.optimizer) for found in measured] == planned


def _list_small() -> Iterator[Place]:
    """Yields all ranks of small worlds, for a model with layers as wide as 30B-A3B's, but few of them."""
    whole = published_shape("Qwen3-VL-30B-A3B-Instruct")
    assert whole.moe is not None
    model = replace(
        whole,
        num_layers=6,
        vision=replace(whole.vision, depth=3, deepstack_visual_indexes=(0, 1, 2)),
        moe=replace(whole.moe, num_experts=8, layers=tuple(range(6))),
    )
    for layout, world_size in SMALL:
        yield from ((model, layout, world_size, rank) for rank in range(world_size))


def _measure(places: list[Place]) -> list[StaticBytes]:
    from tests.helpers.static_bytes import measure_static

    return [
        measure_static(model, layout, world_size=world_size, rank=rank, precision="bf16", optim=OptimConfig())
        for model, layout, world_size, rank in places
    ]


def _formula(model: ModelConfig, layout: ParallelConfig, world_size: int, rank: int) -> StaticBytes:
    of_stage = world_size // layout.pp
    stage, place = divmod(rank, of_stage)
    parts = layout.ep * layout.expert_tp  # that ranks next to each other hold of the experts
    return count_static(
        [list_own(model, chunk, layout) for chunk in list_chunks(model, layout)[stage]],
        element=2,
        num_shards=of_stage // layout.tp,
        shard=place // layout.tp,
        num_expert_shards=of_stage // parts,
        expert_shard=place // parts,
        bucket_size=overlap_bucket_size(layout.dp(world_size)) if layout.overlap else None,
    )
