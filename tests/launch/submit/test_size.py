"""Sizes of jobs: ranks, trainers and engines of every recipe land on as many nodes as they need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launch.recipes.clusters import RECIPE_SITES
from launch.recipes.data import DATA_RECIPES
from launch.recipes.eval import EVAL_RECIPES
from launch.recipes.rl import RL_RECIPES
from launch.recipes.sft import SFT_RECIPES
from launch.submit.config import SlurmConfig
from launch.submit.size import Size, find_size
from rl.config import EngineConfig

GPUS = SlurmConfig(gpus_per_node=8, cpus_per_node=64, partition="gpu", cpu_partition="cpu")
CPUS = SlurmConfig(tasks_per_node=2, cpus_per_node=8)


@pytest.mark.parametrize("name", [name for name in SFT_RECIPES if name in RECIPE_SITES])
def test_sft_has_a_task_for_each_gpu(name: str):
    config = replace(SFT_RECIPES[name](), processes=RECIPE_SITES[name].cluster.num_gpus)
    size = find_size("sft", config, GPUS)
    nodes = RECIPE_SITES[name].cluster.nodes
    assert size == Size(nodes=nodes, tasks_per_node=8, gpus_per_node=8, cpus_per_task=8, partition="gpu")


def test_few_ranks_share_one_node():
    config = replace(SFT_RECIPES["qwen2_5_vl_7b_sft"](), processes=2)
    size = Size(nodes=1, tasks_per_node=2, gpus_per_node=2, cpus_per_task=8, partition="gpu")
    assert find_size("sft", config, GPUS) == size
    assert find_size("sft", SFT_RECIPES["demo"](), CPUS) == Size(nodes=1, tasks_per_node=2, cpus_per_task=4)


def test_rl_has_a_task_a_node_and_gpus_for_trainers_and_engines():
    config = RL_RECIPES["openmmreasoner_gspo"]()
    config = replace(config, trainers=4, engine=replace(config.engine, num_engines=4))
    assert find_size("rl", config, GPUS) == Size(gpus_per_node=8, cpus_per_task=64, partition="gpu")
    large = replace(config, trainers=32, engine=replace(config.engine, num_engines=8, tp=4))
    assert find_size("rl", large, GPUS).nodes == 8 == find_size("rl", large, GPUS, nodes=8).nodes
    assert find_size("rl", large, GPUS, nodes=9).nodes == 9
    assert find_size("rl", RL_RECIPES["demo"](), CPUS) == Size(nodes=2, cpus_per_task=8)
    with pytest.raises(
        ValueError, match="--nodes 7, but `omr rl` takes 8 with this recipe; leave --nodes out"
    ):
        find_size("rl", large, GPUS, nodes=7)


def test_evaluation_data_and_conversion_take_one_node():
    config = EVAL_RECIPES["qwen2_5_vl_7b_greedy"]()
    config = replace(config, engine=replace(config.engine, num_engines=4))
    assert find_size("eval", config, GPUS) == Size(gpus_per_node=4, cpus_per_task=32, partition="gpu")
    assert find_size("data", DATA_RECIPES["own"](), GPUS) == Size(cpus_per_task=64, partition="cpu")
    assert find_size("convert", None, CPUS) == Size(cpus_per_task=8)
    many = replace(config, engine=EngineConfig(num_engines=8, tp=2, max_model_len=53_248))
    with pytest.raises(
        ValueError, match=r"engine.num_engines=8 x tp=2 need more GPUs than slurm.gpus_per_node=8"
    ):
        find_size("eval", many, GPUS)
    with pytest.raises(ValueError, match="--nodes 2, but `omr data` takes 1"):
        find_size("data", None, GPUS, nodes=2)


def test_ranks_that_do_not_fill_nodes_and_unknown_nodes_are_refused():
    config = replace(SFT_RECIPES["qwen2_5_vl_7b_sft"](), processes=12)
    with pytest.raises(
        ValueError, match=r"processes=12 must be a multiple of slurm.gpus_per_node=8.*use 8 or 16"
    ):
        find_size("sft", config, GPUS)
    with pytest.raises(ValueError, match="must say how many GPUs a node has"):
        find_size("sft", config, SlurmConfig())
