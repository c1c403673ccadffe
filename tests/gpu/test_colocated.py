"""Trainer and engine leave a GPU to each other."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from megatron_omr.config import ParallelConfig
from rl.config import EngineConfig, RLConfig, RolloutConfig, SamplingConfig
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported, random_micro_batches

ONE = ParallelConfig()


def _leave_and_return(folder: str) -> tuple[int, int, int, bool]:
    """Returns bytes on the GPU before and after the trainer has left it, those that it says, and if it is the same."""
    import torch

    from megatron_omr.swap.offload import EVERYTHING, Offload
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    trainer = build_trainer(folder, ONE, init_ranks(ONE), OPTIM, precision="bf16", steps=100)
    train_step(trainer, random_micro_batches(trainer, ONE, seed=1))
    weights, offload = exported(trainer), Offload(trainer)
    before = torch.cuda.memory_allocated()
    offload.keep(())
    after, freed = torch.cuda.memory_allocated(), sum(offload.freed.values())
    offload.keep(EVERYTHING)
    same = all(torch.equal(weights[name], tensor) for name, tensor in exported(trainer).items())
    train_step(trainer, random_micro_batches(trainer, ONE, seed=2))
    return before, after, freed, same


def test_trainer_leaves_the_gpu_and_returns(tiny_hf: Path) -> None:
    ((before, after, freed, same),) = run_ranks(_leave_and_return, 1, str(tiny_hf), timeout=280)
    assert before - after == pytest.approx(freed, rel=0.01) and same


def test_engine_leaves_the_gpu_and_returns(tiny_hf: Path, tmp_path: Path) -> None:
    """vLLM's sleep mode: memory for keys and values is free meanwhile, and greedy responses are the same after it."""
    pytest.importorskip("vllm")
    import torch

    from rl.rollout.engine import Engine
    from tests.rl_loop.test_engine import greedy, questions, tokens

    write_shards(digit_samples("test", 4, 0), tmp_path / "shards")
    config = RLConfig(
        run="",
        model=str(tiny_hf),
        shards=str(tmp_path / "shards"),
        pack_length=1024,
        engine=EngineConfig(max_model_len=512, max_num_seqs=64, gpu_memory_utilization=0.2, eager=True),
        rollout=RolloutConfig(placement="colocated"),
        sampling=replace(SamplingConfig(), max_tokens=8),
    )
    prompts = questions(tiny_hf, tmp_path / "shards")
    with closing(Engine(config)) as engine:
        before, (free, total) = greedy(engine, prompts), torch.cuda.mem_get_info()
        engine.sleep()
        assert torch.cuda.mem_get_info()[0] - free > 0.1 * total
        engine.wake_up("weights")
        engine.wake_up("kv_cache")
        assert tokens(greedy(engine, prompts)) == tokens(before)
