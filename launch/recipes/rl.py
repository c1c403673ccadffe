"""RL recipes: `omr rl NAME` starts from the config that the function NAME returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from data_pipeline.encode.config import ImageConfig
from data_pipeline.verify.config import CheckerConfig
from megatron_omr.config import CheckpointConfig, ComputeConfig, OptimConfig, ParallelConfig
from rl.algorithms.config import AlgorithmConfig
from rl.config import EngineConfig, RLConfig, SamplingConfig
from rl.rewards.config import RewardConfig


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
    """The published RL stage: GSPO from the cold start, 128 prompts x 16 responses a step, lr 1e-6, on 8 x 8 GPUs.

    On one machine of 8 GPUs: --trainers 4 --engine.num_engines 4. The same layout fits there too.

    Six machines train and two generate. By `omr plan`, a step takes 142 s so, 107 of them until the longest response
    ends, however many engines there are; with 8 engines it takes 141 s, with 24 146 s and with 32 151 s. Eight would
    be too few as responses grow: at 6,000 tokens 16 are the fastest, at 10,000 they take 0.57 of the time of eight.
    """
    return RLConfig(
        run="runs/qwen2_5_vl_7b_gspo",
        model="runs/qwen2_5_vl_7b_sft/hf",
        shards="data/openmmreasoner_rl_74k",
        steps=1_232,
        prompts_per_step=128,
        seed=42,
        precision="bf16",
        trainers=48,
        pack_length=33_792,
        engine=EngineConfig(num_engines=16, precision="bf16", max_model_len=32_792, max_num_seqs=1_024),
        sampling=SamplingConfig(n=16, temperature=1.0, top_p=1.0, max_tokens=28_696),
        reward=RewardConfig(
            weights=(("accuracy", 0.9), ("format", 0.1)), checker=CheckerConfig(mode="released")
        ),
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


def qwen2_5_vl_32b_gspo() -> RLConfig:
    """The same run on Qwen2.5-VL-32B, on 8 x 8 GPUs: an engine is four GPUs.

    Half of the GPUs train, half generate. By `omr plan`, with 48 trainers and four engines a step takes 0.89 of the
    time at responses of 3,000 tokens, and 1.31 times as long at 6,000.
    """
    small = qwen2_5_vl_7b_gspo()
    return replace(
        small,
        run="runs/qwen2_5_vl_32b_gspo",
        model="runs/qwen2_5_vl_32b_sft/hf",
        trainers=32,
        engine=replace(small.engine, num_engines=8, tp=4),
        parallel=ParallelConfig(tp=8, sp=True),
    )


RL_RECIPES: dict[str, Callable[..., RLConfig]] = {
    "demo": demo,
    "qwen2_5_vl_7b_gspo": qwen2_5_vl_7b_gspo,
    "qwen2_5_vl_7b_grpo": qwen2_5_vl_7b_grpo,
    "qwen2_5_vl_32b_gspo": qwen2_5_vl_32b_gspo,
}
