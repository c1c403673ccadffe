"""SFT recipes: `omr sft NAME` starts from the config that the function NAME returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.config import LoaderConfig
from launch.recipes import mm_reason
from megatron_omr.config import (
    CheckpointConfig,
    ComputeConfig,
    OptimConfig,
    ParallelConfig,
    SFTConfig,
    ValidationConfig,
)


def demo(root: str = "runs/demo", *, seed: int = 42) -> SFTConfig:
    """Minutes on two cores: a million parameters learn arithmetic over scanned digits, fp32 over gloo."""
    return SFTConfig(
        run=f"{root}/sft",
        model=f"{root}/model",
        steps=400,
        seed=seed,
        precision="fp32",
        processes=2,
        loader=LoaderConfig(shards=f"{root}/data/train", global_batch_size=32, pack_length=4096, seed=seed),
        image=ImageConfig(min_pixels=28 * 28, max_pixels=224 * 224),
        optim=OptimConfig(lr=2e-3, schedule="constant", warmup_steps=20, beta2=0.95),
        validation=ValidationConfig(every=100, limit=96),
        checkpoint=CheckpointConfig(every=100, keep=2),
    )


def qwen2_5_vl_7b_sft() -> SFTConfig:
    """The published cold start: 32 packs of 61,440 tokens a step, 4,300 steps, cosine from 5e-5, on 4 x 8 GPUs.

    On one machine of 8 GPUs: --processes 8. The layout fits there too, and a step takes four times as long.

    One rank of a machine reads for all that share its samples. 2,048 photographs take about five seconds of one core,
    and as many requests where the shards are at an address: eight threads hide that behind the step before.

    The paper's 32 ranks held one pack each; here a batch counts samples. 2,048 of them fill those packs if a
    sample has 960 tokens: the corpus' mean response of 675, and an assumed 285 of question and image.
    """
    return SFTConfig(
        run="runs/qwen2_5_vl_7b_sft",
        model="models/Qwen2.5-VL-7B-Instruct",
        steps=4_300,
        seed=42,
        precision="bf16",
        processes=32,
        loader=LoaderConfig(
            shards="data/openmmreasoner_sft/mixed",
            global_batch_size=2_048,
            pack_length=61_440,
            seed=42,
            num_workers=8,
        ),
        image=ImageConfig(min_pixels=3_136, max_pixels=4_194_304),
        parallel=ParallelConfig(tp=2, cp=4, sp=True, overlap=True),
        compute=ComputeConfig(recompute="mlp", recompute_vision="full"),
        optim=OptimConfig(
            lr=5e-5,
            min_lr=0.0,
            schedule="cosine",
            warmup_steps=430,
            weight_decay=0.0,
            beta2=0.999,
            clip_grad=1.0,
        ),
        checkpoint=CheckpointConfig(every=2_000, keep=3),
    )


def qwen2_5_vl_3b_sft() -> SFTConfig:
    """The same recipe on Qwen2.5-VL-3B, on one machine of 8 GPUs."""
    return replace(
        qwen2_5_vl_7b_sft(),
        run="runs/qwen2_5_vl_3b_sft",
        model="models/Qwen2.5-VL-3B-Instruct",
        processes=8,
        parallel=ParallelConfig(cp=4, overlap=True),
    )


def qwen2_5_vl_32b_sft() -> SFTConfig:
    """The same recipe on Qwen2.5-VL-32B, on 4 x 8 GPUs."""
    return replace(
        qwen2_5_vl_7b_sft(),
        run="runs/qwen2_5_vl_32b_sft",
        model="models/Qwen2.5-VL-32B-Instruct",
        parallel=ParallelConfig(tp=2, pp=4, vp=2, cp=4, sp=True, overlap=True),
        compute=ComputeConfig(recompute="full", recompute_vision="full"),
    )


def qwen2_5_vl_72b_sft() -> SFTConfig:
    """The same recipe on Qwen2.5-VL-72B, on 16 x 8 GPUs."""
    return replace(
        qwen2_5_vl_32b_sft(),
        run="runs/qwen2_5_vl_72b_sft",
        model="models/Qwen2.5-VL-72B-Instruct",
        processes=128,
        parallel=ParallelConfig(tp=8, pp=2, cp=4, sp=True, overlap=True),
        compute=ComputeConfig(recompute="mlp", recompute_vision="full"),
    )


def qwen3_vl_8b_sft() -> SFTConfig:
    """The same recipe on Qwen3-VL-8B, on 4 x 8 GPUs."""
    return replace(
        qwen2_5_vl_7b_sft(),
        run="runs/qwen3_vl_8b_sft",
        model="models/Qwen3-VL-8B-Instruct",
        # the processor's smallest image; 1,024 pixels are a token
        image=ImageConfig(min_pixels=65_536, max_pixels=4_194_304),
    )


def qwen3_vl_4b_sft() -> SFTConfig:
    """The same recipe on Qwen3-VL-4B, on one machine of 8 GPUs."""
    return replace(
        qwen3_vl_8b_sft(),
        run="runs/qwen3_vl_4b_sft",
        model="models/Qwen3-VL-4B-Instruct",
        processes=8,
    )


def qwen3_vl_2b_sft() -> SFTConfig:
    """The same recipe on Qwen3-VL-2B, on one machine of 8 GPUs."""
    return replace(
        qwen3_vl_4b_sft(),
        run="runs/qwen3_vl_2b_sft",
        model="models/Qwen3-VL-2B-Instruct",
        parallel=ParallelConfig(cp=4, overlap=True),
    )


def qwen3_vl_32b_sft() -> SFTConfig:
    """The same recipe on Qwen3-VL-32B, on 4 x 8 GPUs."""
    return replace(
        qwen3_vl_8b_sft(),
        run="runs/qwen3_vl_32b_sft",
        model="models/Qwen3-VL-32B-Instruct",
        parallel=ParallelConfig(tp=2, pp=4, vp=2, cp=4, sp=True, overlap=True),
        compute=ComputeConfig(recompute="full", recompute_vision="full"),
    )


def qwen3_vl_30b_a3b_sft() -> SFTConfig:
    """The same recipe on Qwen3-VL-30B-A3B, on 8 x 8 GPUs; experts stay in a machine."""
    return replace(
        qwen3_vl_8b_sft(),
        run="runs/qwen3_vl_30b_a3b_sft",
        model="models/Qwen3-VL-30B-A3B-Instruct",
        processes=64,
        parallel=ParallelConfig(cp=4, ep=8, overlap=True),
        compute=ComputeConfig(recompute="full", recompute_vision="full"),
        optim=replace(qwen3_vl_8b_sft().optim, expert_balance=1e-3),
    )


def qwen3_vl_30b_a3b_sft_1024() -> SFTConfig:
    """The same on 128 x 8 GPUs."""
    return replace(qwen3_vl_30b_a3b_sft(), run="runs/qwen3_vl_30b_a3b_sft_1024", processes=1_024)


def qwen3_vl_235b_a22b_sft() -> SFTConfig:
    """The same recipe on Qwen3-VL-235B-A22B, on 8 x 8 GPUs of 141 GB; experts stay in a machine."""
    return replace(
        qwen3_vl_30b_a3b_sft(),
        run="runs/qwen3_vl_235b_a22b_sft",
        model="models/Qwen3-VL-235B-A22B-Instruct",
        parallel=ParallelConfig(pp=8, vp=4, cp=8, ep=8, overlap=True),
    )


def qwen3_vl_235b_a22b_sft_1024() -> SFTConfig:
    """The same on 128 x 8 GPUs of 80 GB: 32 packs are few for so many, so that four machines share one."""
    return replace(
        qwen3_vl_235b_a22b_sft(),
        run="runs/qwen3_vl_235b_a22b_sft_1024",
        processes=1_024,
        parallel=ParallelConfig(tp=4, pp=8, vp=4, cp=8, sp=True, ep=8, etp=1, overlap=True),
        compute=ComputeConfig(recompute="mlp", recompute_vision="full"),
    )


SFT_RECIPES: dict[str, Callable[..., SFTConfig]] = {
    "demo": demo,
    "qwen2_5_vl_3b_sft": qwen2_5_vl_3b_sft,
    "qwen2_5_vl_7b_sft": qwen2_5_vl_7b_sft,
    "qwen2_5_vl_32b_sft": qwen2_5_vl_32b_sft,
    "qwen2_5_vl_72b_sft": qwen2_5_vl_72b_sft,
    "qwen3_vl_2b_sft": qwen3_vl_2b_sft,
    "qwen3_vl_4b_sft": qwen3_vl_4b_sft,
    "qwen3_vl_8b_sft": qwen3_vl_8b_sft,
    "qwen3_vl_32b_sft": qwen3_vl_32b_sft,
    "qwen3_vl_30b_a3b_sft": qwen3_vl_30b_a3b_sft,
    "qwen3_vl_30b_a3b_sft_1024": qwen3_vl_30b_a3b_sft_1024,
    "qwen3_vl_235b_a22b_sft": qwen3_vl_235b_a22b_sft,
    "qwen3_vl_235b_a22b_sft_1024": qwen3_vl_235b_a22b_sft_1024,
    "mmfinereason_sft": mm_reason.mmfinereason_sft,
    "mmvistareason_sft": mm_reason.mmvistareason_sft,
}
