"""Evaluation recipes: `omr eval NAME` starts from the config that the function NAME returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from launch.recipes import rl_demo
from launch.recipes.openmmreasoner import openmmreasoner_gspo
from launch.recipes.rl_others import qwen3_vl_8b_gspo
from rl.config import EvalConfig, RLConfig, SamplingConfig


def demo(root: str = "runs/demo", *, model: str | None = None, seed: int = 42) -> EvalConfig:
    """The demo's held-out questions, greedy; the policy after RL unless `model` names another."""
    trained = rl_demo.demo(root, seed=seed)
    return EvalConfig(
        model=model or f"{trained.run}/hf",
        shards=f"{root}/data/test",
        out=f"{root}/eval/rl",
        seed=seed,
        engine=trained.engine,
        sampling=SamplingConfig(n=1, temperature=0.0, max_tokens=trained.sampling.max_tokens),
        reward=trained.reward,
        image=trained.image,
    )


def qwen2_5_vl_7b_greedy() -> EvalConfig:
    """The published protocol: one greedy response of at most 49,152 tokens to each question, on 8 GPUs."""
    return _ask_greedily(openmmreasoner_gspo())


def qwen3_vl_8b_greedy() -> EvalConfig:
    """The same protocol for Qwen3-VL-8B, whose images have 65,536 pixels at least."""
    return _ask_greedily(qwen3_vl_8b_gspo())


def _ask_greedily(trained: RLConfig) -> EvalConfig:
    return EvalConfig(
        model=f"{trained.run}/hf",
        shards="data/held_out",
        out=f"{trained.run}/eval",
        engine=replace(trained.engine, num_engines=8, max_model_len=4_096 + 49_152),
        sampling=SamplingConfig(n=1, temperature=0.0, max_tokens=49_152),
        reward=trained.reward,
        image=trained.image,
    )


EVAL_RECIPES: dict[str, Callable[..., EvalConfig]] = {
    "demo": demo,
    "qwen2_5_vl_7b_greedy": qwen2_5_vl_7b_greedy,
    "qwen3_vl_8b_greedy": qwen3_vl_8b_greedy,
}
