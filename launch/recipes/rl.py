"""RL recipes: `omr rl NAME` starts from the config that the function NAME returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from data_pipeline.encode.config import ImageConfig
from data_pipeline.verify.config import CheckerConfig
from megatron_omr.config import CheckpointConfig, ComputeConfig, OptimConfig, ParallelConfig
from rl.config import AlgorithmConfig, EngineConfig, RewardConfig, RLConfig, SamplingConfig


def demo(root: str = "runs/demo", *, seed: int = 42) -> RLConfig:
    """Minutes on two cores: GSPO on the half-trained SFT policy, two Megatron workers and two vLLM engines."""
    return RLConfig(
        run=f"{root}/rl",
        model=f"{root}/sft/hf",
        shards=f"{root}/data/train",
        steps=150,
        prompts_per_step=32,
        seed=seed,
        precision="fp32",
        trainers=2,
        pack_length=4_096,
        share_prompts=True,
        max_mismatch=1e-4,
        engine=EngineConfig(
            num_engines=2,  # a core each while the trainers wait
            precision="fp32",
            max_model_len=512,
            max_num_seqs=256,
            max_images=1,
            cpu_kv_cache_gib=0.5,
        ),
        sampling=SamplingConfig(n=8, max_tokens=48),
        reward=RewardConfig(checker=CheckerConfig(mode="released")),
        image=ImageConfig(min_pixels=28 * 28, max_pixels=224 * 224),
        optim=OptimConfig(lr=2e-4, schedule="cosine", warmup_steps=0, weight_decay=0.0),
        checkpoint=CheckpointConfig(every=20, keep=2),
    )


def qwen2_5_vl_7b_gspo() -> RLConfig:
    """The published RL stage: GSPO from the cold start, 128 prompts x 16 responses a step, lr 1e-6."""
    return RLConfig(
        run="runs/qwen2_5_vl_7b_gspo",
        model="runs/qwen2_5_vl_7b_sft/hf",
        shards="data/openmmreasoner_rl_74k",
        steps=1_232,
        prompts_per_step=128,
        seed=42,
        precision="bf16",
        trainers=4,
        pack_length=33_792,
        engine=EngineConfig(num_engines=4, precision="bf16", max_model_len=32_792, max_num_seqs=1_024),
        sampling=SamplingConfig(n=16, temperature=1.0, top_p=1.0, max_tokens=28_696),
        reward=RewardConfig(accuracy_weight=0.9, format_weight=0.1, checker=CheckerConfig(mode="released")),
        algorithm=AlgorithmConfig(name="gspo", num_minibatches=1),
        image=ImageConfig(min_pixels=3_136, max_pixels=4_194_304),
        parallel=ParallelConfig(tp=4, sp=True),
        compute=ComputeConfig(recompute="mlp", recompute_vision="full"),
        optim=OptimConfig(
            lr=1e-6, schedule="constant", warmup_steps=25, weight_decay=0.1, beta2=0.999, clip_grad=1.0
        ),
        checkpoint=CheckpointConfig(every=16, keep=3),
    )


def qwen2_5_vl_7b_grpo() -> RLConfig:
    """The published GRPO comparison: the same run with token-level ratios, clipped at 0.2 on both sides."""
    return replace(
        qwen2_5_vl_7b_gspo(),
        run="runs/qwen2_5_vl_7b_grpo",
        algorithm=AlgorithmConfig(name="grpo", num_minibatches=1),
    )


RL_RECIPES: dict[str, Callable[..., RLConfig]] = {
    "demo": demo,
    "qwen2_5_vl_7b_gspo": qwen2_5_vl_7b_gspo,
    "qwen2_5_vl_7b_grpo": qwen2_5_vl_7b_grpo,
}
