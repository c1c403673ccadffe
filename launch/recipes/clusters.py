"""The machines that each recipe is meant for, and the published shape of its model: what `omr plan` starts from."""

from __future__ import annotations

from dataclasses import dataclass

from launch.recipes.rl import RL_RECIPES
from megatron_omr.plan.config import ClusterConfig, GpuName


@dataclass(frozen=True, kw_only=True)
class RecipeSite:
    cluster: ClusterConfig
    shape: str  # of megatron_omr/plan/configs, for where the model's folder is not there


def _site(size: str, nodes: int, family: str = "Qwen2.5-VL", gpu: GpuName = "h100") -> RecipeSite:
    return RecipeSite(cluster=ClusterConfig(gpu=gpu, nodes=nodes), shape=f"{family}-{size}-Instruct")


RECIPE_SITES: dict[str, RecipeSite] = {
    "qwen2_5_vl_3b_sft": _site("3B", nodes=1),
    "qwen2_5_vl_7b_sft": _site("7B", nodes=4),
    "qwen2_5_vl_32b_sft": _site("32B", nodes=4),
    "qwen2_5_vl_72b_sft": _site("72B", nodes=16),
    "qwen3_vl_2b_sft": _site("2B", nodes=1, family="Qwen3-VL"),
    "qwen3_vl_4b_sft": _site("4B", nodes=1, family="Qwen3-VL"),
    "qwen3_vl_8b_sft": _site("8B", nodes=4, family="Qwen3-VL"),
    "qwen3_vl_32b_sft": _site("32B", nodes=4, family="Qwen3-VL"),
    "qwen3_vl_30b_a3b_sft": _site("30B-A3B", nodes=8, family="Qwen3-VL"),
    "qwen3_vl_30b_a3b_sft_1024": _site("30B-A3B", nodes=128, family="Qwen3-VL"),
    "qwen3_vl_235b_a22b_sft": _site("235B-A22B", nodes=8, family="Qwen3-VL", gpu="h200"),
    "qwen3_vl_235b_a22b_sft_1024": _site("235B-A22B", nodes=128, family="Qwen3-VL"),
    "mmfinereason_sft": _site("8B", nodes=1, family="Qwen3-VL"),
    "mmvistareason_sft": _site("8B", nodes=1, family="Qwen3-VL"),
    "qwen3_vl_2b_gspo": _site("2B", nodes=1, family="Qwen3-VL"),
    "qwen3_vl_4b_gspo": _site("4B", nodes=1, family="Qwen3-VL"),
    "qwen3_vl_32b_gspo": _site("32B", nodes=8, family="Qwen3-VL"),
    **{
        name: _site("8B", nodes=8, family="Qwen3-VL")
        for name in ("qwen3_vl_8b_gspo", "mmfinereason_gspo", "mmvistareason_gspo")
    },
    **{
        name: _site("32B" if "_32b_" in name else "7B", nodes=8)
        for name in RL_RECIPES
        if not name.startswith(("demo", "qwen3_vl", "mmfine", "mmvista"))
    },
}
"""By the name of the recipe. The demo's have none: they run on a CPU."""
