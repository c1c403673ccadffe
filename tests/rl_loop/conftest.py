"""A policy to start from and an undisturbed run, shared by the tests of the loop on one host and on several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.loader.config import LoaderConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.verify.config import CheckerConfig
from launch.ranks.launcher import rank_environment
from megatron_omr.config import CheckpointConfig, LogConfig, OptimConfig, SFTConfig
from rl.algorithms.config import AlgorithmConfig, DynamicSamplingConfig
from rl.config import EngineConfig, HeldOutConfig, RLConfig, SamplingConfig
from rl.rewards.config import RewardConfig
from tests.helpers.ranks import run_ranks


def sft_rank(config: SFTConfig) -> None:
    from megatron_omr.sft import run_sft

    rank, world_size, init_method = rank_environment()
    run_sft(config, rank=rank, world_size=world_size, init_method=init_method)


@pytest.fixture(scope="session")
def rl_config(tmp_path_factory: pytest.TempPathFactory) -> RLConfig:
    """A policy that knows the form of a response and sometimes the answer, after a minute of SFT."""
    from megatron_omr.tiny import create_tiny_model

    root = tmp_path_factory.mktemp("rl")
    kinds = ("largest", "smallest")
    samples = list(digit_samples("train", 960, seed=9, cell=28, kinds=kinds, num_digits=(2, 2)))
    write_shards(samples, root / "shards")
    create_tiny_model(root / "model", [m.content for s in samples[:200] for m in s.messages])
    image = ImageConfig(min_pixels=784, max_pixels=224 * 224)
    sft = SFTConfig(
        run=str(root / "sft"),
        model=str(root / "model"),
        steps=60,
        precision="fp32",
        loader=LoaderConfig(shards=str(root / "shards"), global_batch_size=16, pack_length=4096),
        image=image,
        optim=OptimConfig(lr=2e-3, schedule="constant", warmup_steps=10, beta2=0.95),
        log=LogConfig(tensorboard=False),
    )
    run_ranks(sft_rank, 2, sft)
    return RLConfig(
        run="",
        model=str(root / "sft" / "hf"),
        shards=str(root / "shards"),
        steps=4,
        prompts_per_step=6,
        precision="fp32",
        trainers=2,
        pack_length=2048,
        share_prompts=True,
        max_mismatch=1e-4,
        engine=EngineConfig(
            precision="fp32", max_model_len=384, max_num_seqs=16, max_images=1, cpu_kv_cache_gib=0.5
        ),
        sampling=SamplingConfig(n=4, max_tokens=40),
        reward=RewardConfig(
            # an own function, which is logged and changes nothing
            weights=(("accuracy", 0.9), ("format", 0.1), ("docs/example_reward.py:shortness", 0.0)),
            checker=CheckerConfig(workers=1),
        ),
        image=image,
        optim=OptimConfig(lr=1e-4, schedule="constant", warmup_steps=0),
        checkpoint=CheckpointConfig(every=2, keep=2),
        log=LogConfig(tensorboard=False),
    )


@pytest.fixture(scope="session")
def sampling_config(rl_config: RLConfig, tmp_path_factory: pytest.TempPathFactory) -> RLConfig:
    """The same with dynamic sampling, which carries groups over, and held-out accuracy."""
    held_out = tmp_path_factory.mktemp("rl") / "held_out"
    kinds = ("largest", "smallest")
    write_shards(digit_samples("test", 16, seed=9, cell=28, kinds=kinds, num_digits=(2, 2)), held_out)
    dynamic = DynamicSamplingConfig(enabled=True, oversampling=2.0, max_tries=4)
    return replace(
        rl_config,
        prompts_per_step=3,
        algorithm=AlgorithmConfig(dynamic_sampling=dynamic),
        held_out=HeldOutConfig(shards=str(held_out), every=2, at_start=True, n=2),
    )


@pytest.fixture(scope="session")
def finished(sampling_config: RLConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rl.loop import run_rl

    run = tmp_path_factory.mktemp("rl") / "undisturbed"
    run_rl(replace(sampling_config, run=str(run)))
    return run
