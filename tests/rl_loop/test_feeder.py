"""Asynchronous asking with engines that answer in any order, die and find faults, over any stops and resumes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.types import SampleRef
from rl.algorithms.config import AlgorithmConfig, DynamicSamplingConfig
from rl.config import EngineConfig, RLConfig, RolloutConfig, SamplingConfig
from rl.modes.feeder import Feeder
from rl.modes.line import Line, max_asked
from rl.prompts.stream import PromptStream
from rl.rollout.calls import Request
from rl.rollout.collect import Collected
from rl.rollout.manager import RolloutManager
from rl.types import Group, Prompt, Responses
from tests.helpers.echo_engines import EchoEngine, EchoEngines
from tests.helpers.groups import make_group, make_prompt, make_reward


def build_config(
    wanted: int, steps: int, staleness: float, max_tries: int | None = None, run: str = ""
) -> RLConfig:
    """Returns a config of so many groups a step; with `max_tries` with dynamic sampling."""
    rules = DynamicSamplingConfig(enabled=True, max_tries=max_tries) if max_tries else DynamicSamplingConfig()
    return RLConfig(
        run=run,
        model="",
        shards="",
        steps=steps,
        prompts_per_step=wanted,
        sampling=SamplingConfig(n=2, max_tokens=8),
        engine=EngineConfig(num_engines=3, max_num_seqs=6),
        rollout=RolloutConfig(mode="async", max_staleness=staleness),
        algorithm=AlgorithmConfig(dynamic_sampling=rules),
    )


R = TypeVar("R")
TORN = Responses(fault="torn", detail="pixels")


def numbers(groups: Sequence[Group]) -> list[int]:
    return [group.prompt.ref.offset for group in groups]


# ---- the line ----


def test_groups_are_taken_in_the_order_of_asking() -> None:
    line = Line(build_config(2, 9, 1.0), steps_done=0)
    assert line.room == 4
    places = [line.add(make_prompt(number)) for number in range(4)]
    assert [place.step for place in places] == [0, 0, 1, 1] and line.room == 0
    for number in (3, 1):
        line.finish(places[number], make_group(places[number].prompt, [1, 0]), True)
        assert line.take() is None, "the first is not there"
    line.finish(places[0], make_group(places[0].prompt, [1, 0]), True)
    taken = line.take()
    assert taken and numbers(taken.asked) == numbers(taken.counted) == [0, 1]
    assert line.room == 0, "the step trains on them"
    line.end_step(1)
    assert line.room == 2 and line.add(make_prompt(4)).step == 2


def test_group_without_a_signal_makes_room_only_under_dynamic_sampling() -> None:
    for max_tries in (None, 5):
        line = Line(build_config(2, 9, 0.0, max_tries), steps_done=0)
        places = [line.add(make_prompt(number)) for number in range(2)]
        line.finish(places[0], make_group(places[0].prompt, [1, 1]), False)
        line.finish(places[1], make_group(places[1].prompt, [1, 0]), True)
        taken = line.take()
        assert line.room == (1 if max_tries else 0)
        assert (taken is None) == bool(max_tries)
        if max_tries:
            place = line.add(make_prompt(2))
            line.finish(place, make_group(place.prompt, [1, 0]), True)
            taken = line.take()
            assert taken and (numbers(taken.asked), numbers(taken.counted)) == ([0, 1, 2], [1, 2])


def test_step_gives_up_after_too_many_groups_without_a_signal() -> None:
    line = Line(build_config(2, 9, 0.0, max_tries=2), steps_done=0)
    seen = 0
    while room := line.room:
        for _ in range(room):
            place = line.add(make_prompt(seen))
            line.finish(place, make_group(place.prompt, [1, 0]), seen == 1)
            seen += 1
    taken = line.take()
    assert taken and numbers(taken.counted) == [1] and len(taken.asked) == seen == 5
    line.end_step(1)
    assert line.room == 2


@pytest.mark.parametrize("staleness, most", [(0, 8), (0.25, 10), (0.5, 12), (1, 16), (2.3, 26)])
def test_a_share_of_a_step_may_be_asked_early(staleness: float, most: int) -> None:
    config = build_config(8, 99, staleness)
    line = Line(config, steps_done=0)
    assert max_asked(config) == line.room == most
    last = build_config(8, 5, staleness)
    line = Line(last, steps_done=0)
    line.end_step(4)
    assert line.room == 8, "the last step needs no more"


# ---- the feeder ----


@dataclass(eq=False)
class Mixed(EchoEngine):
    """Marks some tokens with the version when the prompt was asked, and the others with that when it answers."""

    asked_at: dict[int, int] = field(default_factory=dict)  # version by seed

    def answer(self, prompts: Sequence[Prompt], sampling: SamplingConfig, step_seed: int) -> list[Responses]:
        (responses,) = super().answer(prompts, sampling, step_seed)
        before = self.asked_at[step_seed]
        spans = ((before, 1), (self.version, 2)) if before != self.version else ((self.version, 3),)
        return [replace(responses, rollouts=tuple(replace(r, versions=spans) for r in responses.rollouts))]


@dataclass
class World:
    """What does not change over the lives of a run: the prompts, which of them have a fault or a signal."""

    config: RLConfig
    random: random.Random
    faults: set[int]
    has_signal: dict[int, bool]
    checkpoint: tuple[int, str] = (0, "{}")  # steps done and state
    trained: dict[int, Collected] = field(default_factory=dict)


class Stream:
    """Prompts 0, 1, 2, ..."""

    def __init__(self, world: World) -> None:
        self.world, self.next, self.refused = world, 0, 0

    @property
    def skipped(self) -> dict[str, float]:
        return {"skipped_prompts": self.refused}

    def choose(self, count: int) -> list[Prompt]:
        count = self.world.random.randint(1, count)  # also in smaller parts
        self.next += count
        return [make_prompt(number) for number in range(self.next - count, self.next)]

    def choose_again(self, ref: SampleRef) -> Prompt:
        return make_prompt(ref.offset)

    def refuse(self, prompt: Prompt, responses: Responses) -> None:
        assert prompt.ref.offset in self.world.faults and responses.fault == "torn"
        self.refused += 1

    def learn(self, step: int, groups: Sequence[Group]) -> None:
        """Pass rates have tests of their own."""

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Life:
    """One process of the run: loads the last checkpoint, and trains until it is stopped or killed."""

    def __init__(self, world: World) -> None:
        self.world, config = world, world.config
        seed = world.random.randrange(2**32)
        deaths = [n for n in range(1, 60) if world.random.random() < 0.05]
        self.asked_at: dict[int, int] = {}
        engines = EchoEngines(seed, deaths=deaths, kind=self.start)  # type: ignore[arg-type]
        self.engines = RolloutManager(engines.calls(), config.engine, threaded=False)
        self.scoring: list[tuple[Future[Group], Prompt, Responses]] = []
        stream = cast(PromptStream, Stream(world))
        self.feeder = Feeder(config, stream, self.submit, self.score, threaded=False)

    def start(self, number: int) -> Mixed:
        return Mixed(number, asked_at=self.asked_at)

    def submit(self, requests: Sequence[Request]) -> Sequence[Future[Responses]]:
        assert all(request.seed == request.prompt.ref.offset for request in requests), "asked again as it was"
        faults = [request.prompt.ref.offset in self.world.faults for request in requests]
        good = [request for request, has_fault in zip(requests, faults, strict=True) if not has_fault]
        self.asked_at |= dict.fromkeys([request.seed for request in good], self.version)
        replies = iter(self.engines.submit(good))
        return [settled(TORN) if has_fault else next(replies) for has_fault in faults]

    def score(self, prompt: Prompt, responses: Responses, *, max_tokens: int) -> Future[Group]:
        assert max_tokens == self.world.config.sampling.max_tokens
        self.scoring.append((Future(), prompt, responses))
        return self.scoring[-1][0]

    def reward(self, prompt: Prompt, responses: Responses) -> Group:
        differs = self.world.has_signal.setdefault(prompt.ref.offset, self.world.random.random() < 0.5)
        rewards = (make_reward(1), make_reward(0 if differs else 1))
        return Group(prompt=prompt, rollouts=responses.rollouts, rewards=rewards)

    def pass_time(self) -> None:
        """Engines answer a prompt, some responses are scored, and the feeder does what follows."""
        self.engines.pump_once(0)
        self.feeder.run_turns()
        self.world.random.shuffle(self.scoring)
        for _ in range(self.world.random.randint(0, len(self.scoring))):
            future, prompt, responses = self.scoring.pop()
            future.set_result(self.reward(prompt, responses))
        self.feeder.run_turns()
        line = self.feeder._line
        waiting = sum(place.counts and place.group is None for place in line)
        assert waiting + line.num_ready + line._num_training <= max_asked(self.world.config)

    def update(self, version: int) -> None:
        self.engines.update_weights(version)
        self.version = version
        self.feeder.begin(version)

    def run(self, lives_for: int, *, saves_at_end: bool) -> None:
        """Trains so many steps after the checkpoint; then it is stopped, or killed in the midst of the next."""
        world, config = self.world, self.world.config
        first, state = world.checkpoint
        self.feeder.load(first, json.loads(state))
        self.update(first)
        for step in range(first, config.steps):
            future = self.feeder.take(step)
            while not future.done():
                self.pass_time()
                self.engines._update()  # what wait() does
            world.trained[step] = future.result()
            for _ in range(world.random.randint(0, 6)):
                self.pass_time()
            if step == first + lives_for and not saves_at_end:
                return
            self.update(step + 1)
            for _ in range(world.random.randint(0, 2)):
                self.pass_time()
            is_last = step == first + lives_for
            if is_last or (step + 1) % config.checkpoint.every == 0 or step + 1 == config.steps:
                world.checkpoint = (step + 1, json.dumps(self.feeder.save(step + 1)))
            if is_last:
                return


def settled(result: R) -> Future[R]:
    future: Future[R] = Future()
    future.set_result(result)
    return future


def feed(config: RLConfig, asked: list[Request], ends: Callable[[Request], bool]) -> Feeder:
    """Returns a feeder after 2 steps whose prompts are noted; those that end have two wrong responses at once."""

    def submit(requests: Sequence[Request]) -> list[Future[Responses]]:
        asked.extend(requests)
        return [settled(Responses()) if ends(request) else Future() for request in requests]

    def score(prompt: Prompt, responses: Responses, *, max_tokens: int) -> Future[Group]:
        return settled(make_group(prompt, [0, 0]))

    stream = cast(PromptStream, Stream(World(config, random.Random(0), set(), {})))
    return Feeder(config, stream, submit, score, threaded=False)


def test_prompt_that_is_asked_again_has_the_longest_response_of_its_step(tmp_path: Path) -> None:
    """Groups without a signal that came meanwhile do not make it one of an earlier step."""
    config = build_config(4, 9, 1.0, max_tries=9, run=str(tmp_path))
    config = replace(config, sampling=SamplingConfig(n=2, max_tokens=8, stages=((0, 4), (3, 8))))
    before, after = list[Request](), list[Request]()
    feeder = feed(config, before, lambda request: request.seed in (0, 1))
    feeder.load(2, {})
    feeder.begin(2)
    feeder.run_turns()
    state = json.loads(json.dumps(feeder.save(2)))
    resumed = feed(config, after, lambda request: False)
    resumed.load(2, state)
    resumed.begin(2)
    resumed.run_turns()
    tokens = {request.seed: request.sampling.max_tokens for request in before}
    assert [tokens[number] for number in range(8)] == [4] * 4 + [8] * 4
    assert {request.seed: request.sampling.max_tokens for request in after} == {
        number: count for number, count in tokens.items() if number > 1
    }


def test_all_who_wait_learn_what_went_wrong_also_those_who_come_meanwhile() -> None:
    feeder = feed(build_config(2, 9, 1.0), [], lambda request: False)
    second: list[Future[Collected]] = []
    first = feeder.take(0)
    first.add_done_callback(lambda _: second.append(feeder.take(1)))
    feeder._events.put(lambda: 1 / 0)
    feeder.run_turns()
    for future in (first, *second):
        assert isinstance(future.exception(timeout=0), ZeroDivisionError)
    assert second


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    staleness=st.sampled_from([0, 0.5, 1, 2.5]),
    max_tries=st.sampled_from([None, 1, 4]),
)
def test_every_prompt_is_used_once_in_its_order_over_any_stops_and_resumes(
    seed: int, staleness: float, max_tries: int | None
) -> None:
    """Killed in the midst of steps, stopped after others: the same prompts train in the same steps as in one go."""
    rng = random.Random(seed)
    with TemporaryDirectory() as folder:
        config = build_config(rng.randint(1, 4), rng.randint(1, 7), staleness, max_tries, run=folder)
        config = replace(config, checkpoint=replace(config.checkpoint, every=rng.randint(1, 3)))
        faults = {number for number in range(200) if rng.random() < 0.1}
        world = World(config, rng, faults, {number: rng.random() < 0.6 for number in range(200)})
        while world.checkpoint[0] < config.steps:
            life = Life(world)
            life.run(rng.randint(0, 3), saves_at_end=rng.random() < 0.5)
            life.feeder.close()
            life.engines.close()
    check(world)


def check(world: World) -> None:
    config, steps = world.config, [world.trained[step] for step in range(world.config.steps)]
    asked = [number for step in steps for number in numbers(step.asked)]
    in_order = [number for number in range(max(asked, default=-1) + 1) if number not in world.faults]
    assert asked == in_order, "each once, in the order of the stream"
    for step, groups in enumerate(steps):
        with_signal = [number for number in numbers(groups.asked) if world.has_signal[number]]
        assert numbers(groups.chosen) == with_signal
        if config.algorithm.dynamic_sampling.enabled:
            dropped = len(groups.asked) - len(groups.chosen)
            tries = config.algorithm.dynamic_sampling.max_tries
            assert len(groups.chosen) == config.prompts_per_step or dropped >= tries * config.prompts_per_step
        else:
            assert len(groups.asked) == config.prompts_per_step
        ages = [step - rollout.oldest_version for group in groups.asked for rollout in group.rollouts]
        assert all(0 <= age <= ceil(config.rollout.max_staleness) for age in ages)
