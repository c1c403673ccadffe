"""The machines that each recipe is meant for, and the published shape of its model: what `omr plan` starts from."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_omr.plan.config import ClusterConfig


@dataclass(frozen=True, kw_only=True)
class RecipeSite:
    cluster: ClusterConfig
    shape: str  # of megatron_omr/plan/configs, for where the model's folder is not there


_ONE_NODE = ClusterConfig(gpu="h100", nodes=1)
_7B = RecipeSite(cluster=_ONE_NODE, shape="Qwen2.5-VL-7B-Instruct")
RECIPE_SITES: dict[str, RecipeSite] = {
    "qwen2_5_vl_3b_sft": RecipeSite(cluster=_ONE_NODE, shape="Qwen2.5-VL-3B-Instruct"),
    "qwen2_5_vl_7b_sft": _7B,
    "qwen2_5_vl_32b_sft": RecipeSite(cluster=ClusterConfig(nodes=4), shape="Qwen2.5-VL-32B-Instruct"),
    "qwen2_5_vl_72b_sft": RecipeSite(cluster=ClusterConfig(nodes=16), shape="Qwen2.5-VL-72B-Instruct"),
    "qwen2_5_vl_7b_gspo": _7B,
    "qwen2_5_vl_7b_grpo": _7B,
}
"""By the name of the recipe. The demo has none: it runs on a CPU."""
