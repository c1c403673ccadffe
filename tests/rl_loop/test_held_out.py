"""Held-out accuracy is that of an evaluation with the weights of its step, and ends with the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, cast

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.errors import BadSample
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.config import EngineConfig, HeldOutConfig, RLConfig, SamplingConfig
from rl.evaluation.summary import summarize
from rl.groups import build_records
from rl.held_out import HeldOut
from rl.rewards.scorer import Scorer
from rl.rollout.calls import EngineCalls
from rl.rollout.manager import RolloutManager
from rl.types import Group, Prompt, Responses
from tests.helpers.bad_samples import bad_questions
from tests.helpers.echo_engines import EchoEngine, EchoEngines
from tests.helpers.groups import make_reward

ENGINE = EngineConfig(num_engines=2, max_model_len=1_500, max_images=1, max_num_seqs=4)


@pytest.fixture(scope="module")
def config(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> RLConfig:
    """Measures ten questions after 0, 2, 4 steps; one of them cannot be asked."""
    folder = tmp_path_factory.mktemp("held_out") / "test"
    good = list(digit_samples("test", 9, seed=5, cell=28))
    bad, _ = next(iter(bad_questions(good[0]).values()))
    write_shards([*good, bad], folder)
    return RLConfig(
        run="",
        model=str(tiny_hf),
        shards="",
        image=ImageConfig(min_pixels=784),
        engine=ENGINE,
        sampling=SamplingConfig(n=4, max_tokens=8),
        held_out=HeldOutConfig(shards=str(folder), every=2, at_start=True, n=2),
    )


class Scores:
    """Finds every second response right, and keeps the groups."""

    def __init__(self) -> None:
        self.groups: list[Group] = []

    def drop(self) -> None:
        pass

    def score(
        self, prompt: Prompt, responses: Responses, *, max_tokens: int, asks_judge: bool = True
    ) -> Future[Group]:
        scored = Future[Group]()
        rewards = tuple(make_reward(number % 2) for number in range(len(responses.rollouts)))
        self.groups.append(Group(prompt=prompt, rollouts=responses.rollouts, rewards=rewards))
        scored.set_result(self.groups[-1])
        return scored


@pytest.fixture
def scores() -> Scores:
    return Scores()


@pytest.fixture
def held_out(config: RLConfig, scores: Scores) -> Iterator[HeldOut]:
    with closing(HeldOut(config, cast(Scorer, scores))) as held_out:
        yield held_out


def test_numbers_are_those_of_an_evaluation_of_the_weights_of_the_step(
    config: RLConfig, held_out: HeldOut, scores: Scores
) -> None:
    """The same questions with the same seeds each time; the one that cannot be asked counts as wrong."""
    manager = RolloutManager(EchoEngines().calls(), ENGINE)
    measured = []
    for step in range(5):
        manager.update_weights(step)
        held_out.start(step, manager)
        measured.append(held_out.finish())
    assert [found.get("held_out_version") for found in measured] == [0, None, 2, None, 4]
    assert measured[1] == {} and len(scores.groups) == 3 * 9
    times = [scores.groups[first : first + 9] for first in (0, 9, 18)]
    bad = replace(times[0][0], rollouts=(), rewards=(), fault=BadSample("image", "torn"))
    groups = [*times[0], bad]
    wanted = summarize([build_records(group) for group in groups], seed=config.seed)
    assert measured[2]["held_out_accuracy"] == wanted.accuracy == pytest.approx(0.45)
    assert (measured[2]["held_out_low"], measured[2]["held_out_high"]) == wanted.ci95
    assert (measured[2]["held_out_len"], measured[2]["held_out_truncated"]) == (3, 0)
    asked = [{g.prompt: [r.token_ids.tolist() for r in g.rollouts] for g in gs} for gs in times]
    assert asked[0] == asked[1] == asked[2] and len(asked[0]) == 9
    seeds = {ids[1] for rollouts in asked[0].values() for ids in rollouts}
    assert all(seed < 0 for seed in seeds)  # no step of training has it
    assert {group.prompt.shards for group in scores.groups} == {config.held_out.shards}


class Recorder(EchoEngine):
    """Keeps how it was asked."""

    seen: ClassVar[set[tuple[str, int, float, float, int]]] = set()

    def answer(self, prompts: Sequence[Prompt], sampling: SamplingConfig, step_seed: int) -> list[Responses]:
        for prompt in prompts:
            values = (sampling.n, sampling.temperature, sampling.top_p, sampling.max_tokens)
            self.seen.add((Path(prompt.shards).name, *values))
        return super().answer(prompts, sampling, step_seed)


class Knows(Scores):
    """Finds all responses to some questions right."""

    def score(
        self, prompt: Prompt, responses: Responses, *, max_tokens: int, asks_judge: bool = True
    ) -> Future[Group]:
        if prompt.ref.id.startswith("known"):
            rewards = tuple(make_reward(1.0) for _ in responses.rollouts)
            scored = Future[Group]()
            scored.set_result(Group(prompt=prompt, rollouts=responses.rollouts, rewards=rewards))
            return scored
        return super().score(prompt, responses, max_tokens=max_tokens)


def test_benchmarks_are_asked_and_measured_in_their_own_way(
    config: RLConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three seed questions with two variants each, of which one is wrong and one bad; problems that are half right."""
    samples = list(digit_samples("test", 6, seed=5, cell=28))
    bad, _ = next(iter(bad_questions(samples[0]).values()))
    variants = [
        replace(sample, id=f"{'known' if i else 'new'}/{i}", metadata={"group": str(i // 2)})
        for i, sample in enumerate([*samples[:4], samples[3], bad])
    ]
    for name, questions in {"dynamath": variants, "amc23": [*samples[4:], bad]}.items():
        write_shards([replace(sample, source=name) for sample in questions], tmp_path / name)
    benchmarks = tuple((name, str(tmp_path / name)) for name in ("dynamath", "amc23"))
    asks = replace(config, held_out=replace(config.held_out, benchmarks=benchmarks))
    manager = RolloutManager(EchoEngines(kind=Recorder).calls(), ENGINE)
    manager.update_weights(2)
    with closing(HeldOut(asks, cast(Scorer, Knows()))) as held_out:
        held_out.start(2, manager)
        found = held_out.finish()
    assert Recorder.seen == {
        ("test", 2, 1.0, 0.7, 8),
        ("dynamath", 1, 0.0, 1.0, 8),
        ("amc23", 8, 1.0, 1.0, 8),
    }
    numbers = {name: value for name, value in found.items() if name.startswith("held_out/")}
    assert numbers["held_out/dynamath/worst"] == pytest.approx(1 / 3)
    assert numbers["held_out/dynamath/average"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert numbers["held_out/amc23/avg@8"] == pytest.approx(0.5 * 2 / 3)
    assert numbers["held_out/amc23/pass@8"] == pytest.approx(2 / 3)
    for name, number in (("amc23", "avg@8"), ("dynamath", "worst")):
        assert numbers[f"held_out/{name}/low"] < numbers[f"held_out/{name}/{number}"]
        assert numbers[f"held_out/{name}/{number}"] < numbers[f"held_out/{name}/high"]
    assert "held_out/dynamath/accuracy" not in numbers
    assert "dynamath asks 6 of 5,010 published questions" in caplog.text
    assert {numbers[f"held_out/{name}/version"] for name, _ in benchmarks} == {2}
    assert next(iter(numbers)) == "held_out/dynamath/worst", "the number that tables print is the first"
    assert found["held_out_accuracy"] == pytest.approx(0.45)


def test_benchmarks_that_are_not_there_are_refused_with_the_command_that_writes_them(
    config: RLConfig, scores: Scores, tmp_path: Path
) -> None:
    for pair, message in (
        (("amc32", "x"), "held_out.benchmarks has 'amc32', and there are .*amc23"),
        (("amc23", str(tmp_path)), f"holds no shards of amc23; .*omr data benchmark amc23 {tmp_path}"),
        (("amc23", config.held_out.shards), "holds questions of digits, not of amc23"),
    ):
        with pytest.raises(ValueError, match=message):
            HeldOut(replace(config, held_out=HeldOutConfig(benchmarks=(pair,))), cast(Scorer, scores))


def test_weights_after_the_last_step_are_measured_and_those_before_it_are_not(
    config: RLConfig, scores: Scores
) -> None:
    """Of a run whose last steps are due by themselves, too."""
    asks = replace(config, steps=3, held_out=replace(config.held_out, every=1))
    manager, versions = RolloutManager(EchoEngines().calls(), ENGINE), []
    with closing(HeldOut(asks, cast(Scorer, scores))) as held_out:
        for step in range(3):
            manager.update_weights(step)
            held_out.start(step, manager)
            versions.append(held_out.finish().get("held_out_version"))
            manager.update_weights(step + 1)
            versions.append(held_out.measure_last(step + 1, manager).get("held_out_version"))
    assert versions == [0, None, 1, None, None, 3]


def test_training_waits_only_for_what_takes_longer(held_out: HeldOut) -> None:
    calls = EchoEngines().calls()
    slow = replace(calls, poll=lambda seconds: time.sleep(0.05) or calls.poll(seconds))
    manager = RolloutManager(slow, ENGINE)
    manager.update_weights(0)
    held_out.start(0, manager)
    assert held_out.finish()["seconds_held_out"] >= 0.05
    held_out.start(2, manager)
    time.sleep(2.0)  # in place of a step of training; asking takes 0.5 s
    assert held_out.finish()["seconds_held_out"] < 0.05


def test_it_is_measured_a_step_later_where_all_engines_died(
    held_out: HeldOut, caplog: pytest.LogCaptureFixture
) -> None:
    manager = RolloutManager(EchoEngines(deaths=[1, 2, 3]).calls(), ENGINE)
    manager.update_weights(2)
    held_out.start(2, manager)
    assert held_out.finish().keys() == {"seconds_held_out"}
    assert "measured a step later" in caplog.text
    manager.update_weights(3)
    held_out.start(3, manager)
    assert held_out.finish()["held_out_version"] == 3
    assert manager.restarts == 3


def test_end_of_a_run_does_not_wait_for_engines(config: RLConfig, scores: Scores) -> None:
    """As when the trainer dies: engines are closed first, which ends what is asked."""
    stopped, park = threading.Event(), EchoEngines()
    calls = park.calls()
    hanging: EngineCalls = replace(
        calls,
        poll=lambda seconds: stopped.wait(60) and [],
        stop=lambda engine: (calls.stop(engine), stopped.set()),
    )
    held_out, manager = HeldOut(config, cast(Scorer, scores)), RolloutManager(hanging, ENGINE)
    held_out.start(2, manager)
    started = time.monotonic()
    manager.close()
    held_out.close()
    assert time.monotonic() - started < 10 and scores.groups == []


def test_shards_without_questions_are_refused(config: RLConfig, tmp_path: Path, scores: Scores) -> None:
    write_shards([], tmp_path / "empty")
    scorer = cast(Scorer, scores)
    with pytest.raises(ValueError, match="holds no questions"):
        HeldOut(replace(config, held_out=HeldOutConfig(shards=str(tmp_path / "empty"))), scorer)
    with closing(HeldOut(replace(config, held_out=HeldOutConfig()), scorer)) as nothing:
        nothing.start(0, RolloutManager(EchoEngines().calls(), ENGINE))
        assert nothing.finish() == {}
