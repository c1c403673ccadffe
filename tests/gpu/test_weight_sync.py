"""Weights go from the GPU of a trainer to a vLLM engine on a GPU.

The bounds are a guess from BF16's rounding, far below the effect of other weights on a CPU; on an H200 they held.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples

SAME = 0.05
"""Of the largest logit: BF16 in the engine, float32 in transformers."""


def test_engine_computes_with_the_weights_that_a_gpu_sent(tiny_hf: Path, tmp_path: Path) -> None:
    """The engine's logprobs are transformers' for the new weights, and were for the old ones."""
    pytest.importorskip("vllm")
    from dataclasses import replace

    import torch

    from rl.rollout.engine import Engine
    from tests.helpers.weights import sent, update_engine
    from tests.rl_loop.test_engine import Oracle, engine_config, generate, questions

    shards = tmp_path / "shards"
    write_shards(digit_samples("test", 4, 0), shards)
    config = engine_config(tiny_hf, shards, temperature=1.0)
    engine_settings = replace(config.engine, precision="bf16", gpu_memory_utilization=0.2, eager=True)
    engine, oracle = (
        Engine(replace(config, engine=engine_settings)),
        Oracle(tiny_hf, shards),
    )
    prompts = questions(tiny_hf, shards)

    def gap() -> float:
        rollouts = [responses[0] for responses in generate(engine, prompts, step_seed=1)]
        return oracle.gap(prompts, rollouts)

    with closing(engine):
        assert gap() < SAME
        weights = [(name, t.to("cuda", torch.bfloat16)) for name, t in oracle.change(seed=1)]
        stale = gap()  # of the engine's old weights to the oracle's new ones
        with sent(weights, 1, bucket_bytes=2**20) as place:
            update_engine(engine, place, 1)
            assert engine.version == 1
        assert gap() < min(SAME, stale / 2)
