"""RL recipes: `omr rl NAME` starts from the config that the function NAME returns."""

from __future__ import annotations

from collections.abc import Callable

from launch.recipes import mm_reason, rl_demo, rl_others
from launch.recipes import openmmreasoner as omr
from rl.config import RLConfig

RL_RECIPES: dict[str, Callable[..., RLConfig]] = {
    "demo": rl_demo.demo,
    "demo_gspo_token": rl_demo.demo_gspo_token,
    "demo_grpo": rl_demo.demo_grpo,
    "demo_dapo": rl_demo.demo_dapo,
    "demo_dr_grpo": rl_demo.demo_dr_grpo,
    "demo_cispo": rl_demo.demo_cispo,
    "demo_sapo": rl_demo.demo_sapo,
    "demo_visurf": rl_demo.demo_visurf,
    "openmmreasoner_gspo": omr.openmmreasoner_gspo,
    "openmmreasoner_gspo_4": omr.openmmreasoner_gspo_4,
    "openmmreasoner_gspo_n8": omr.openmmreasoner_gspo_n8,
    "openmmreasoner_gspo_t14": omr.openmmreasoner_gspo_t14,
    "openmmreasoner_gspo_curriculum": omr.openmmreasoner_gspo_curriculum,
    "openmmreasoner_gspo_async": omr.openmmreasoner_gspo_async,
    "openmmreasoner_grpo": omr.openmmreasoner_grpo,
    "openmmreasoner_dapo": omr.openmmreasoner_dapo,
    "openmmreasoner_dapo_n8": omr.openmmreasoner_dapo_n8,
    "openmmreasoner_dapo_t14": omr.openmmreasoner_dapo_t14,
    "openmmreasoner_dapo_released": omr.openmmreasoner_dapo_released,
    "openmmreasoner_32b_gspo": omr.openmmreasoner_32b_gspo,
    "visurf": rl_others.visurf,
    "mmfinereason_gspo": mm_reason.mmfinereason_gspo,
    "mmvistareason_gspo": mm_reason.mmvistareason_gspo,
    "mmr1": rl_others.mmr1,
    "qwen3_vl_2b_gspo": rl_others.qwen3_vl_2b_gspo,
    "qwen3_vl_4b_gspo": rl_others.qwen3_vl_4b_gspo,
    "qwen3_vl_8b_gspo": rl_others.qwen3_vl_8b_gspo,
    "qwen3_vl_32b_gspo": rl_others.qwen3_vl_32b_gspo,
}
