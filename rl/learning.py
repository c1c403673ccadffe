"""Learns from the groups of a step, and ends the step: log, checkpoint, stop. All modes of the loop use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from megatron_omr.faults.bad_steps import BadSteps
from megatron_omr.train.metrics import JsonLines
from megatron_omr.train.stop import StopRequest
from rl.algorithms.advantage import TaskScale
from rl.config import RLConfig
from rl.groups import assign_advantages
from rl.metrics import SignalWatch, StepLog, list_trained, measure_staleness
from rl.rollout.collect import Collected
from rl.timer import PhaseTimer
from rl.trainer_group import TrainerGroup, learn


class Learner:
    """The trainer's part of a run, from the newest checkpoint on. Close it, or use it as a context manager."""

    def __init__(self, config: RLConfig, trainers: TrainerGroup, stop: StopRequest) -> None:
        """Loads the newest checkpoint: `state` is what was saved of the groups to come, {} where there is none."""
        self.first_step, self.state = trainers.resume()
        self.steps_done = self.first_step
        print(trainers.describe_backends(), flush=True)
        self._config, self._trainers, self._stop = config, trainers, stop
        self._stops = False
        self._scale = TaskScale(config.algorithm.scale_decay, self.state.get("task_scale"))
        self._bad_steps, self._signal = BadSteps(**self.state.get("bad_steps", {})), SignalWatch()
        self._log = StepLog(config, self.first_step)
        self._trained = JsonLines(Path(config.run) / "trained.jsonl", first_step=self.first_step)

    def __enter__(self) -> Learner:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self._trained.close()

    def steps(self) -> Iterator[int]:
        """Yields the numbers of the steps to do, until `config.steps` or a stop that end() has seen."""
        for step in range(self.first_step, self._config.steps):
            if self._stops:
                return
            yield step

    def learn(self, step: int, collected: Collected, timer: PhaseTimer) -> dict[str, float]:
        """Trains on the groups of step `step`, before which the weights have that version; returns metrics.

        Raises:
            FloatingPointError: too many steps in a row changed nothing.
            RuntimeError: engines and trainer disagree.
        """
        config = self._config
        with timer.phase("train"):
            self._scale.update(collected.asked)
            assign = partial(assign_advantages, algorithm=config.algorithm, scale=self._scale)
            rollouts, kept = [*map(assign, collected.asked)], [*map(assign, collected.chosen)]
            trained = learn(config, self._trainers, rollouts, kept, step)
            self._signal.add(collected.asked, kept)
            self._bad_steps = self._bad_steps.after(
                trained["skipped_steps"] > 0,
                limit=config.optim.max_bad_steps,
                samples=lambda: {group[0].ref.id for group in kept},
            )
        return trained | measure_staleness(collected.chosen, step)

    def end(
        self,
        step: int,
        collected: Collected,
        values: Mapping[str, float],
        timer: PhaseTimer,
        save: Callable[[int], dict[str, Any]],
    ) -> None:
        """Writes the lines of a step, and a checkpoint where one is due or the run is to stop.

        Args:
            values: metrics beside those of the groups.
            save: takes the number of steps done, and returns the state of the groups to come.
        """
        done, config = step + 1, self._config
        values = collected.metrics | dict(values) | {"bad_steps": float(self._bad_steps.total)}
        self._log.write(step, collected.asked, timer.seconds(), values)
        self._trained.write(step, {"groups": list_trained(collected.chosen)})
        self._stops = self._stop.is_made()
        if self._stops or done % config.checkpoint.every == 0 or done == config.steps:
            self._signal.warn(done)
            state = {"bad_steps": asdict(self._bad_steps), "task_scale": self._scale.state_dict()}
            self._trainers.save(done, state | save(done))
        self.steps_done = done
