"""Configs of reinforcement learning and evaluation refuse values that cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from rl.algorithms.config import AlgorithmConfig, DynamicSamplingConfig, KLConfig, SolutionConfig
from rl.config import EngineConfig, EvalConfig, HeldOutConfig, PromptConfig, RLConfig, SamplingConfig
from rl.rewards.config import RewardConfig

RL = RLConfig(run="r", model="m", shards="s")
SAMPLES_DYNAMICALLY = AlgorithmConfig(dynamic_sampling=DynamicSamplingConfig(enabled=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EngineConfig(num_engines=0), "engine.num_engines=0 must be at least 1"),
        (lambda: EngineConfig(tp=0), "engine.tp=0 must be at least 1"),
        (lambda: SamplingConfig(max_tokens=0), "sampling.max_tokens=0 must be at least 1"),
        (lambda: AlgorithmConfig(clip_low=-0.1), "algorithm.clip_low=-0.1 must be at least 0"),
        (lambda: AlgorithmConfig(name="grpo", dual_clip=0.5), "algorithm.dual_clip=0.5 is a ratio above 1"),
        (
            lambda: AlgorithmConfig(name="sapo", sapo_temperatures=(1, 0)),
            "sapo_temperatures=.1, 0. must be above 0",
        ),
        (
            lambda: replace(
                RL,
                reward=RewardConfig(weights=(("format", 1.0),)),
                algorithm=AlgorithmConfig(solution=SolutionConfig(enabled=True)),
            ),
            "algorithm.solution.without_format leaves a solution nothing but its accuracy",
        ),
        (
            lambda: AlgorithmConfig(advantage="task_scale", task_scale_decay=1),
            "algorithm.task_scale_decay=1 must be at least 0 and below 1",
        ),
        (lambda: SamplingConfig(top_p=0.0), "sampling.top_p=0 must be above 0"),
        (lambda: SamplingConfig(stages=((5, 9),)), "sampling.stages=.* must begin with step 0"),
        (lambda: SamplingConfig(stages=((0, 9), (0, 99))), "later stages at later steps"),
        (lambda: SamplingConfig(max_tokens=9, stages=((0, 10),)), "1 to sampling.max_tokens=9 tokens each"),
        (lambda: PromptConfig(refresh=0), "prompts.refresh=0 must be at least 1"),
        (lambda: PromptConfig(weighted_share=1.0), "prompts.weighted_share=1 must be at least 0 and below 1"),
        (lambda: HeldOutConfig(every=0), "held_out.every=0 must be at least 1"),
        (
            lambda: replace(RL, sampling=SamplingConfig(temperature=0.7, top_p=0.9)),
            "sampling.top_p=0.9 must be 1 in RL with sampling.temperature=0.7",
        ),
        (lambda: replace(RL, warn_mismatch=0.2), "warn_mismatch=0.2 must be from 0 to max_mismatch=0.1"),
        (lambda: HeldOutConfig(top_p=1.5), "held_out.top_p=1.5 must be above 0 and at most 1"),
        (lambda: HeldOutConfig(benchmarks=(("amc23", "a"), ("amc23", "b"))), "names amc23 twice"),
        (lambda: HeldOutConfig(temperature=0, n=4), "held_out.n=4 must be 1 with held_out.temperature=0"),
        (lambda: SamplingConfig(temperature=0), "sampling.n=16 must be 1 with sampling.temperature=0"),
        (
            lambda: replace(RL, held_out=HeldOutConfig(shards="h", temperature=0.6)),
            "held_out.temperature=0.6 must be sampling.temperature=1, for which the engines are started, or 0",
        ),
        (
            lambda: EvalConfig(
                model="m", shards="s", out="o", sampling=SamplingConfig(max_tokens=9, stages=((0, 9),))
            ),
            "sampling.stages=.* are of RL",
        ),
        (
            lambda: AlgorithmConfig(
                drop_equal_groups=False, dynamic_sampling=DynamicSamplingConfig(enabled=True)
            ),
            "drop_equal_groups=False does not go with algorithm.dynamic_sampling",
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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: AlgorithmConfig(name="sapo", clip_high=0.2),
            "clip_high=0.2 does nothing for sapo, only for gspo,",
        ),
        (
            lambda: AlgorithmConfig(dual_clip=3),
            "dual_clip=3 does nothing for gspo, only for grpo, dapo, dr_grpo",
        ),
        (
            lambda: AlgorithmConfig(sapo_temperatures=(1, 2)),
            "does nothing for gspo, only for sapo; leave it out",
        ),
        (
            lambda: AlgorithmConfig(task_scale_decay=0.9),
            "does nothing for advantage=zscore, only for task_scale",
        ),
        (
            lambda: KLConfig(estimator="k1"),
            "algorithm.kl.estimator=k1 does nothing without algorithm.kl.coeff",
        ),
        (
            lambda: DynamicSamplingConfig(oversampling=2),
            "oversampling=2 does nothing without algorithm.dynamic_sampling.enabled; set that, or leave oversampling",
        ),
        (lambda: SolutionConfig(smooth=False), "algorithm.solution.smooth=False does nothing without"),
        (
            lambda: replace(RL, prompts_per_step=2, algorithm=AlgorithmConfig(num_minibatches=3)),
            "num_minibatches=3 must be at most prompts_per_step=2",
        ),
        (
            lambda: replace(RL, algorithm=SAMPLES_DYNAMICALLY, sampling=SamplingConfig(n=1)),
            "dynamic_sampling.enabled does nothing with sampling.n=1",
        ),
        (
            lambda: replace(
                RL,
                reward=RewardConfig(weights=(("format", 1.0), ("accuracy", 0.0))),
                algorithm=AlgorithmConfig(solution=SolutionConfig(enabled=True)),
            ),
            "leaves a solution nothing but its accuracy, which has no weight",
        ),
    ],
)
def test_values_without_effect_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_same_values_are_taken_where_they_have_an_effect() -> None:
    assert AlgorithmConfig(name="grpo", dual_clip=0).dual_clip_ratio == 0
    assert AlgorithmConfig(name="sapo", sapo_temperatures=(1, 2)).gate_temperatures == (1, 2)
    assert AlgorithmConfig(advantage="task_scale", task_scale_decay=0.0).scale_decay == 0
    assert KLConfig(coefficient=0.1, estimator="k1").estimator == "k1"
    with_solution = replace(SAMPLES_DYNAMICALLY, solution=SolutionConfig(enabled=True, smooth=False))
    assert replace(RL, algorithm=with_solution, sampling=SamplingConfig(n=1)).sampling.n == 1


def test_held_out_questions_are_asked_every_so_many_steps() -> None:
    config = HeldOutConfig(shards="h", every=3)
    assert [step for step in range(11) if config.is_due(step, 10)] == [3, 6, 10]
    assert replace(config, at_start=True).is_due(0, 10) and not HeldOutConfig(at_start=True).is_due(0, 10)
