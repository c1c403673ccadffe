"""run_sync with engines and a trainer in this process: a run that ends and resumes anywhere equals a whole one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.verify.config import CheckerConfig
from megatron_omr.config import CheckpointConfig, LogConfig
from megatron_omr.train.run_folder import list_checkpoints
from megatron_omr.train.stop import StopRequest
from rl.algorithms.config import AlgorithmConfig, DynamicSamplingConfig
from rl.config import EngineConfig, HeldOutConfig, PromptConfig, RLConfig, SamplingConfig
from rl.held_out import HeldOut
from rl.loop import run_sync
from rl.rewards.config import RewardConfig
from rl.rewards.scorer import Scorer
from rl.rollout.manager import RolloutManager
from rl.trainer_group import TrainerGroup
from rl.types import Prompt, Responses, Rollout, TrainRollout
from tests.helpers.echo_engines import EchoEngine, EchoEngines
from tests.helpers.rl_rows import rows


class Trainer:
    """Keeps what it is to learn, and the state of checkpoints."""

    def __init__(self, run: Path) -> None:
        self.learned: list[list[tuple[object, ...]]] = []
        self._folder = run / "checkpoints"

    def resume(self) -> tuple[int, dict[str, Any]]:
        if not (saved := list_checkpoints(self._folder)):
            return 0, {}
        return int(saved[-1].name[-8:]), json.loads((saved[-1] / "state.json").read_text())

    def describe_backends(self) -> str:
        return "a trainer that does not learn"

    def check_engines(self, rollouts: Sequence[TrainRollout], version: int) -> dict[str, float]:
        assert all(rollout.is_fresh(version) for rollout in rollouts)
        return {}

    def train(self, minibatches: Sequence[Sequence[TrainRollout]], version: int) -> dict[str, float]:
        self.learned.append(
            [
                (r.ref.id, version - r.oldest_version, r.token_ids.tolist(), r.logprobs.tolist(), r.advantage)
                for minibatch in minibatches
                for r in minibatch
                if r.logprobs is not None
            ]
        )
        return {"skipped_steps": 0.0}

    def save(self, step: int, state: dict[str, Any]) -> None:
        (self._folder / f"step-{step:08d}").mkdir(parents=True)
        (self._folder / f"step-{step:08d}" / "state.json").write_text(json.dumps(state))


class Guesser(EchoEngine):
    """Is right once in five, by the prompt, the seed and its version."""

    def answer(self, prompts: Sequence[Prompt], sampling: SamplingConfig, step_seed: int) -> list[Responses]:
        return [self._respond(prompt, sampling, step_seed) for prompt in prompts]

    def _respond(self, prompt: Prompt, sampling: SamplingConfig, step_seed: int) -> Responses:
        rng = np.random.default_rng((prompt.ref.offset, step_seed + 1, self.version))
        rollouts = []
        for _ in range(sampling.n):
            said = prompt.answer if rng.random() < 0.2 else "nothing"
            ids = rng.integers(sampling.max_tokens, size=3, dtype=np.int32)
            rollouts.append(
                Rollout(
                    token_ids=ids,
                    logprobs=-ids.astype(np.float32) / 7,
                    response=f"<think>a</think><answer>{said}</answer>",
                    finish_reason="length" if rng.random() < 0.2 else "stop",
                    versions=((self.version, 3),),
                )
            )
        return Responses(rollouts=tuple(rollouts))


@pytest.fixture
def config(tiny_hf: Path, tmp_path: Path) -> RLConfig:
    """All that changes which prompts, responses and groups are trained on, at once."""
    for split, count in (("train", 60), ("test", 9)):
        write_shards(digit_samples(split, count, seed=5, cell=28), tmp_path / split)
    return RLConfig(
        run=str(tmp_path / "whole"),
        model=str(tiny_hf),
        shards=str(tmp_path / "train"),
        steps=8,
        prompts_per_step=5,
        image=ImageConfig(min_pixels=784),
        engine=EngineConfig(num_engines=2, max_model_len=1_500, max_images=1, max_num_seqs=16),
        sampling=SamplingConfig(n=4, max_tokens=40, stages=((0, 20), (3, 40))),
        prompts=PromptConfig(weighted_share=0.5, refresh=2),
        held_out=HeldOutConfig(shards=str(tmp_path / "test"), every=2, at_start=True),
        reward=RewardConfig(checker=CheckerConfig(workers=1)),
        algorithm=AlgorithmConfig(
            advantage="task_scale",
            mask_truncated=True,
            dynamic_sampling=DynamicSamplingConfig(enabled=True, oversampling=3.0, max_tries=3),
        ),
        checkpoint=CheckpointConfig(every=1),
        log=LogConfig(tensorboard=False),
    )


def run(config: RLConfig) -> list[list[tuple[object, ...]]]:
    """Runs to `config.steps`; returns what each of its steps learned."""
    folder = Path(config.run)
    trainer = Trainer(folder)
    with (
        Scorer(config.reward, folder) as scorer,
        closing(HeldOut(config, scorer)) as held_out,
        closing(RolloutManager(EchoEngines(kind=Guesser).calls(), config.engine)) as engines,
    ):
        trainers, stop = cast(TrainerGroup, trainer), StopRequest()
        run_sync(config, trainers, engines, scorer, held_out=held_out, stop=stop)
    return trainer.learned


def test_run_in_parts_equals_a_whole_one_with_held_out_questions(config: RLConfig, tmp_path: Path) -> None:
    """Carried groups, learned pass rates, the scale of tasks and the stage all resume."""
    whole, parts = run(config), []
    for steps in (1, 2, 5, 8):
        parts += run(replace(config, run=str(tmp_path / "parts"), steps=steps, held_out=HeldOutConfig()))
    assert parts == whole
    ages = {age for step in whole for _, age, *_ in step}
    assert ages >= {0, 1}, "groups were carried over"
    seen = rows(config.run)
    assert [row["max_tokens"] for row in seen] == [20] * 3 + [40] * 5
    assert [row.get("held_out_version") for row in seen] == [0, None, 2, None, 4, None, 6, None]
