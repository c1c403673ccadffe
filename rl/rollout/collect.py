"""Collects the groups of a step: asks until enough of them have a signal, and keeps what is too much for the next.

Imports neither Ray nor vLLM: it gets the functions that ask prompts and score their responses.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rl.algorithms.config import AlgorithmConfig
from rl.algorithms.solution import measure_solutions
from rl.config import RLConfig, SamplingConfig
from rl.groups import select_groups
from rl.prompts.stream import PromptStream
from rl.rollout.carried import load_carried, save_carried
from rl.timer import PhaseTimer
from rl.types import Group, Prompt, Responses, Rollout

log = logging.getLogger(__name__)

Asked = list[tuple[Prompt, tuple[Rollout, ...]]]
Generate = Callable[[Sequence[Prompt], SamplingConfig, int], Sequence[Responses]]
"""RolloutManager.generate"""
Score = Callable[[Asked], list[Group]]

MIN_SHARE = 0.25
"""A round asks at most one prompt over this share for each group that is missing, however few had a signal so far."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The groups of one step."""

    asked: list[Group]  # in this step, so of the current weights
    chosen: list[Group]  # to train on; first those that were asked in an earlier step
    metrics: dict[str, float] = field(default_factory=dict)


class Collector:
    """Collects groups with a signal. Without algorithm.dynamic_sampling it asks once, and nothing is carried over."""

    def __init__(self, config: RLConfig, prompts: PromptStream, generate: Generate, score: Score) -> None:
        self.carried: list[Group] = []  # from earlier steps, not trained on yet, oldest first
        self._ahead: Collected | None = None  # of the next step
        self._config = config
        self._run, self._algorithm, self._wanted = Path(config.run), config.algorithm, config.prompts_per_step
        self._sampling = config.sampling
        self._prompts, self._generate, self._score = prompts, generate, score

    def collect(self, step: int, timer: PhaseTimer) -> Collected:
        """Returns the groups of step `step`; times generate and reward.

        Groups that were carried over come first. While some are missing, up to `max_tries` rounds are asked: the first
        of `oversampling` prompts for each missing group, a later one of as many as the share with a signal so far
        makes likely. Groups that are then too many are carried over whole.
        """
        rules = self._algorithm.dynamic_sampling
        max_tries = rules.max_tries if rules.enabled else 1
        asked, ready, tries = list[Group](), list(self.carried), 0
        while len(ready) < self._wanted and tries < max_tries:
            missing, found = self._wanted - len(ready), len(ready) - len(self.carried)
            count = count_prompts(self._algorithm, missing, found=found, asked=len(asked))
            with timer.phase("generate"):
                responses = self._prompts.ask(count, partial(self._respond, step, tries))
            with timer.phase("reward"):
                groups = self._score(responses)
            ready += [groups[i] for i in select_groups(self._algorithm, groups)]
            asked += groups
            tries += 1
        self._prompts.learn(step, asked)
        found = len(ready) - len(self.carried)
        chosen, self.carried = ready[: self._wanted], ready[self._wanted :]
        if rules.enabled and len(chosen) < self._wanted:
            log.warning(
                f"step {step}: {len(chosen)} of {self._wanted} groups have a signal after {tries} rounds of prompts "
                f"(algorithm.dynamic_sampling.max_tries); {found} of {len(asked)} prompts gave one"
            )
        metrics = measure_collected(self._config, step, asked=asked, chosen=chosen, found=found)
        metrics |= self._prompts.skipped
        if rules.enabled:
            metrics |= {"sampling_tries": tries, "groups_carried": len(self.carried)}
        return Collected(asked=asked, chosen=chosen, metrics=metrics)

    def collect_ahead(self, step: int) -> None:
        """Collects the groups of a step whose turn is not yet, for take_ahead()."""
        self._ahead = self.collect(step, PhaseTimer())

    def take_ahead(self) -> Collected | None:
        """Returns the groups that were collected ahead, also before the run was resumed; None where there are none."""
        ahead, self._ahead = self._ahead, None
        return ahead

    def save(self, step: int) -> dict[str, Any]:
        """Writes what is carried over after `step` steps; returns the state that load() gets back on resuming."""
        ahead = self._ahead
        groups = {id(group): group for group in self.carried}  # a group may be carried over, asked and chosen
        if ahead:
            groups |= {id(group): group for group in [*ahead.asked, *ahead.chosen]}
        places = {key: place for place, key in enumerate(groups)}
        save_carried(self._run, step, list(groups.values()))
        state: dict[str, Any] = {"prompts": self._prompts.state_dict(), "carried": len(self.carried)}
        if ahead:
            asked, chosen = ([places[id(group)] for group in part] for part in (ahead.asked, ahead.chosen))
            state["ahead"] = {
                "saved": len(groups),
                "asked": asked,
                "chosen": chosen,
                "metrics": ahead.metrics,
            }
        return state

    def load(self, step: int, state: Mapping[str, Any]) -> None:
        """Continues after `step` steps; from the beginning where `state` has no prompts.

        Groups that cannot be read are lost, with a warning.
        """
        if "prompts" not in state:
            return
        self._prompts.load_state_dict(state["prompts"])
        carried, ahead = state.get("carried", 0), state.get("ahead")
        groups = load_carried(self._run, step, ahead["saved"] if ahead else carried)
        self.carried = groups[:carried]
        if ahead and groups:
            self._ahead = Collected(
                asked=[groups[place] for place in ahead["asked"]],
                chosen=[groups[place] for place in ahead["chosen"]],
                metrics=ahead["metrics"],
            )

    def _respond(self, step: int, tries: int, prompts: Sequence[Prompt]) -> Sequence[Responses]:
        return self._generate(prompts, self._sampling.at(step), seed_round(step, tries))


def measure_collected(
    config: RLConfig, step: int, *, asked: Sequence[Group], chosen: Sequence[Group], found: int
) -> dict[str, float]:
    """Returns the metrics of a step's groups; `found` of those that were asked have a signal."""
    metrics: dict[str, float] = {"groups_kept": len(chosen), "groups_total": len(asked)}
    if config.sampling.stages:
        metrics["max_tokens"] = config.sampling.at(step).max_tokens
    if config.algorithm.dynamic_sampling.enabled and asked:
        metrics["groups_share"] = found / len(asked)
    return metrics | measure_solutions(config.algorithm.solution, chosen)


def count_prompts(algorithm: AlgorithmConfig, missing: int, *, found: int, asked: int) -> int:
    """Returns how many prompts to ask for `missing` groups, when `found` of `asked` so far had a signal."""
    rules = algorithm.dynamic_sampling
    if not rules.enabled:
        return missing
    if not asked:
        return math.ceil(missing * rules.oversampling)
    return math.ceil(missing / max(MIN_SHARE, found / asked))


def seed_round(step: int, tries: int) -> int:
    """Returns the seed of a round: another for each, as a small data set asks a prompt twice in a step."""
    return step + (tries << 32)
