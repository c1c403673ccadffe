"""A run's mode with engines and a trainer in this process: what each step learned, wherever the run stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np

from megatron_omr.train.run_folder import list_checkpoints
from megatron_omr.train.stop import StopRequest
from rl.config import RLConfig, SamplingConfig
from rl.held_out import HeldOut
from rl.learning import Learner
from rl.loop import MODES
from rl.modes.parts import RunParts
from rl.modes.status import StatusWriter
from rl.rewards.scorer import Scorer
from rl.rollout.manager import RolloutManager
from rl.trainer_group import TrainerGroup
from rl.types import Prompt, Responses, Rollout, TrainRollout
from tests.helpers.echo_engines import EchoEngine, EchoEngines

Learned = list[tuple[object, ...]]


class Trainer:
    """Keeps what it is to learn, and the state of checkpoints."""

    def __init__(self, run: Path) -> None:
        self.learned: list[Learned] = []
        self._folder = run / "checkpoints"

    def resume(self) -> tuple[int, dict[str, Any]]:
        if not (saved := list_checkpoints(self._folder)):
            return 0, {}
        return int(saved[-1].name[-8:]), json.loads((saved[-1] / "state.json").read_text())

    def describe_backends(self) -> str:
        return "a trainer that does not learn"

    def check_engines(self, rollouts: Sequence[TrainRollout], version: int) -> dict[str, float]:
        assert all(rollout.logprobs is not None for rollout in rollouts)
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


class StopAfter(StopRequest):
    """Is made once a run in this process has ended so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def is_made(self) -> bool:
        self._left -= 1
        return self._left <= 0


def run_mode(
    config: RLConfig,
    engines: Callable[[], EchoEngines] = lambda: EchoEngines(kind=Guesser),
    *,
    steps: int | None = None,
) -> list[Learned]:
    """Runs config.rollout.mode to `config.steps`, or until a stop after `steps`; returns what each step learned."""
    folder = Path(config.run)
    trainer = Trainer(folder)
    stop = StopRequest() if steps is None else StopAfter(steps)
    with (
        Scorer(config.reward, folder) as scorer,
        closing(HeldOut(config, scorer)) as held_out,
        closing(RolloutManager(engines().calls(), config.engine)) as manager,
        Learner(config, cast(TrainerGroup, trainer), stop) as learner,
        StatusWriter(folder, config.steps) as status,
    ):
        status.states = manager.states
        parts = RunParts(
            config=config, learner=learner, engines=manager, scorer=scorer, held_out=held_out, status=status
        )
        MODES[config.rollout.mode](parts)
    return trainer.learned
