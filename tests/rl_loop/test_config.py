"""Configs of reinforcement learning and evaluation refuse values that cannot run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rl.algorithms.config import AlgorithmConfig
from rl.config import EngineConfig, EvalConfig, RLConfig, SamplingConfig


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EngineConfig(num_engines=0), "engine.num_engines=0 must be at least 1"),
        (lambda: EngineConfig(tp=0), "engine.tp=0 must be at least 1"),
        (lambda: SamplingConfig(max_tokens=0), "sampling.max_tokens=0 must be at least 1"),
        (lambda: AlgorithmConfig(clip_low=-0.1), "algorithm.clip_low=-0.1 must be at least 0"),
        (lambda: AlgorithmConfig(dual_clip=0.5), "algorithm.dual_clip=0.5 is a ratio above 1"),
        (lambda: AlgorithmConfig(name="sapo", clip_high=0.2), "clip_high=0.2 do nothing for sapo"),
        (lambda: AlgorithmConfig(sapo_temperatures=(1, 0)), "sapo_temperatures=.1, 0. must be above 0"),
        (
            lambda: AlgorithmConfig(task_scale_decay=1),
            "algorithm.task_scale_decay=1 must be at least 0 and below 1",
        ),
        (lambda: EvalConfig(model="m", shards="s", out="o", limit=-1), "limit=-1 must be at least 0"),
        (
            lambda: RLConfig(run="r", model="m", shards="s", pack_length=1_000),
            "pack_length=1000 must hold .* raise it to at least 32792",
        ),
    ],
)
def test_values_that_cannot_run_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
