"""Trains under a virtual clock with the real manager, Collector and Feeder, and modelled engines.

The pages of rl/modes are followed call by call; in place of a learner the clock goes on by a fixed time for each step.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from benchmarks.scale.cluster import GROUP, Cluster, ClusterConfig, make_prompts
from benchmarks.scale.ready_first import ReadyFirstFeeder
from rl.algorithms.config import AlgorithmConfig
from rl.config import EngineConfig, RLConfig, RolloutConfig, SamplingConfig
from rl.modes.feeder import Feeder
from rl.prompts.stream import PromptStream
from rl.rollout.collect import Asked, Collected, Collector
from rl.rollout.manager import RolloutManager
from rl.timer import PhaseTimer
from rl.types import Group, Prompt, Responses

LONG = 8_207
"""Tokens that 19 of 20 responses do not reach."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run."""

    mode: str
    """sync, one_step_off, async, or ready_first, which is not in rl/modes."""
    engines: int
    prompts_per_step: int
    steps: int
    trainer_seconds: float
    max_staleness: float = 1.0
    """Of async; of ready_first the steps of prompts that are asked ahead."""
    bound: int | None = None
    """ready_first: steps after which a group is trained on in any case; None: none."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What had happened by the end of a step."""

    time: float
    waited: float  # seconds of the trainer, for groups, in all
    decoding: float  # seconds of engines
    prefilling: float
    paused: float
    slots: float
    tokens: float
    length: float  # mean of the responses that the step trained on


class Prompts:
    """Stands in for PromptStream: prompts without shards."""

    skipped: Mapping[str, float] = {}

    def __init__(self) -> None:
        self.asked = 0

    def choose(self, count: int) -> list[Prompt]:
        self.asked += count
        return make_prompts(count, self.asked - count)

    def ask(self, count: int, generate: Callable[[list[Prompt]], Sequence[Responses]]) -> Asked:
        prompts = self.choose(count)
        found = generate(prompts)
        return [(p, responses.rollouts) for p, responses in zip(prompts, found, strict=True)]

    def learn(self, step: int, groups: Sequence[Group]) -> None:
        """Has no pass rates."""


class Training:
    """A run under a virtual clock."""

    def __init__(self, setting: Setting) -> None:
        mode = "async" if setting.mode == "ready_first" else cast(Any, setting.mode)
        staleness = setting.max_staleness if mode == "async" else 1.0
        self.setting, self.cluster, self.prompts = setting, Cluster(setting.cluster), Prompts()
        self.config = RLConfig(
            run=tempfile.gettempdir(),  # nothing is written
            model="",
            shards="",
            steps=setting.steps + 100,  # near its end an asynchronous run asks less
            prompts_per_step=setting.prompts_per_step,
            sampling=SamplingConfig(n=GROUP),
            algorithm=AlgorithmConfig(drop_equal_groups=False),
            engine=EngineConfig(num_engines=setting.engines, max_num_seqs=setting.cluster.slots),
            rollout=RolloutConfig(mode=mode, max_staleness=staleness),
        )
        self.engines = RolloutManager(self.cluster.calls(), self.config.engine, threaded=False)
        self.steps: list[Step] = []
        self.ages = Counter[int]()  # tokens by the versions between sampling them and learning from them
        self.ages_of_long = Counter[int]()  # the same of responses longer than LONG
        self.trained = Counter[str]()  # prompts
        self._waited = 0.0

    def run(self) -> None:
        """Trains all steps."""
        self.engines.update_weights(0)
        run = {"sync": self._run_sync, "one_step_off": self._run_one_step_off}
        run.get(self.setting.mode, self._run_async)()

    def _run_sync(self) -> None:
        collector = self._collector(self.engines.generate)
        for step in range(self.setting.steps):
            with self._waiting():
                collected = collector.collect(step, PhaseTimer())
            self._pass(self.setting.trainer_seconds)
            self._end(step, collected)

    def _run_one_step_off(self) -> None:
        collector = self._collector(partial(self.engines.generate, replaces_dead=False))
        for step in range(self.setting.steps):
            with self._waiting():
                collected = collector.take_ahead() or collector.collect(step, PhaseTimer())
            ready_at = self.cluster.now + self.setting.trainer_seconds
            if step + 1 < self.setting.steps:
                collector.collect_ahead(step + 1)  # takes as long as it takes, with the trainer beside it
            self._waited += max(0.0, self.cluster.now - ready_at)
            self._pass(ready_at - self.cluster.now)
            self._end(step, collected)

    def _run_async(self) -> None:
        if self.setting.mode == "ready_first":
            kind: Any = partial(ReadyFirstFeeder, bound=self.setting.bound)
        else:
            kind = Feeder
        stream = cast(PromptStream, self.prompts)
        with closing(kind(self.config, stream, self.engines.submit, score, threaded=False)) as feeder:
            self.cluster.before_poll = feeder.run_turns
            feeder.load(0, {})
            feeder.begin(0)
            for step in range(self.setting.steps):
                with self._waiting():
                    taken = feeder.take(step)
                    self.engines.wait([taken])
                self._pass(self.setting.trainer_seconds)
                self._end(step, taken.result())
                feeder.begin(step + 1)

    def _collector(self, generate: Any) -> Collector:
        return Collector(self.config, cast(PromptStream, self.prompts), generate, collect)

    def _pass(self, seconds: float) -> None:
        """Lets time pass, in which the engines are fed."""
        until = self.cluster.now + seconds
        while self.cluster.now < until:
            self.engines.pump_once(until - self.cluster.now)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        start = self.cluster.now
        yield
        self._waited += self.cluster.now - start

    def _end(self, step: int, collected: Collected) -> None:
        """Sends the weights after `step`, and notes what was trained on."""
        self.engines.update_weights(step + 1)
        rollouts = [rollout for group in collected.chosen for rollout in group.rollouts]
        for rollout in rollouts:
            ages = {step - version: tokens for version, tokens in rollout.versions}
            self.ages.update(ages)
            self.ages_of_long.update(ages if len(rollout.token_ids) > LONG else {})
        self.trained.update(group.prompt.ref.id for group in collected.chosen)
        used = {
            name: self.cluster.used(name) for name in ("decoding", "prefilling", "paused", "slots", "tokens")
        }
        length = sum(len(rollout.token_ids) for rollout in rollouts) / len(rollouts)
        self.steps.append(Step(time=self.cluster.now, waited=self._waited, length=length, **used))


def measure(training: Training) -> dict[str, Any]:
    """Returns what a run did a step, without its first third."""
    setting, steps = training.setting, training.steps
    first, last = steps[len(steps) // 3 - 1], steps[-1]
    seconds = last.time - first.time
    engines = setting.engines * seconds
    tokens = sum(training.ages.values())
    return {
        "seconds a step": seconds / (len(steps) - len(steps) // 3),
        "decoding": (last.decoding - first.decoding) / engines,
        "computing prompts": (last.prefilling - first.prefilling) / engines,
        "taking weights": (last.paused - first.paused) / engines,
        "slots": (last.slots - first.slots) / engines / setting.cluster.slots,
        "tokens a second and engine": (last.tokens - first.tokens) / engines,
        "trainer waits": (last.waited - first.waited) / seconds,
        "staleness": {str(age): count / tokens for age, count in sorted(training.ages.items())},
        "mean staleness": average(training.ages),
        "mean staleness of long responses": average(training.ages_of_long),
        "lengths": [round(step.length) for step in steps],
    }


def average(ages: Counter[int]) -> float:
    return sum(age * count for age, count in ages.items()) / max(1, ages.total())


def score(prompt: Prompt, responses: Responses, *, max_tokens: int) -> Future[Group]:
    """Returns the group at once: rewards are not modelled."""
    scored: Future[Group] = Future()
    scored.set_result(Group(prompt=prompt, rollouts=responses.rollouts, rewards=()))
    return scored


def collect(asked: Asked) -> list[Group]:
    return [Group(prompt=prompt, rollouts=rollouts, rewards=()) for prompt, rollouts in asked]
