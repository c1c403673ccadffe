"""Dynamic sampling: how often is asked, what is trained on, and what is carried over, also through a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from rl.algorithms.config import AlgorithmConfig, DynamicSamplingConfig
from rl.algorithms.solution import build_solution
from rl.config import RLConfig, SamplingConfig
from rl.prompts.stream import PromptStream
from rl.rollout.carried import load_carried, save_carried
from rl.rollout.collect import Asked, Collector
from rl.timer import PhaseTimer
from rl.types import Group, Prompt, Responses
from tests.helpers.groups import make_group, make_prompt, make_reward


class Engines:
    """Prompts and engines: numbers the prompts; `has_signal` says of which the responses differ in accuracy."""

    skipped: dict[str, float] = {}

    def __init__(self, has_signal: Callable[[int], bool]) -> None:
        self.rounds: list[tuple[int, int]] = []  # count and seed
        self._numbers, self._has_signal = count(), has_signal

    def ask(self, count: int, generate: Callable[[list[Prompt]], Sequence[Responses]]) -> Asked:
        prompts = [make_prompt(next(self._numbers)) for _ in range(count)]
        return [(prompt, r.rollouts) for prompt, r in zip(prompts, generate(prompts), strict=True)]

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed: int) -> list[Responses]:
        self.rounds.append((len(prompts), seed))
        return [Responses() for _ in prompts]

    def learn(self, step: int, groups: list[Group]) -> None:
        """Prompts learn in tests of their own."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Prompts resume in tests of their own."""

    def score(self, asked: Asked) -> list[Group]:
        """Groups without a signal differ in format, and so in their total reward."""
        groups = [make_group(prompt, [1, 0]) for prompt, _ in asked]
        equal = (make_reward(0), make_reward(0, form=0))
        return [g if self._has_signal(g.prompt.ref.offset) else replace(g, rewards=equal) for g in groups]


def config(run: Path | str = "", *, wanted: int = 4, **rules: float) -> RLConfig:
    sampling = DynamicSamplingConfig(enabled=True, **rules)  # type: ignore[arg-type]
    return RLConfig(
        run=str(run),
        model="",
        shards="",
        prompts_per_step=wanted,
        algorithm=AlgorithmConfig(dynamic_sampling=sampling),
    )


def build(settings: RLConfig, has_signal: Callable[[int], bool]) -> tuple[Collector, Engines]:
    engines = Engines(has_signal)
    return Collector(settings, cast(PromptStream, engines), engines.generate, engines.score), engines


def numbers(groups: list[Group]) -> list[int]:
    return [group.prompt.ref.offset for group in groups]


def flatten(group: Group) -> list[object]:
    """Returns all fields of a group, arrays as lists, for comparison."""
    arrays = [(r.token_ids.tolist(), r.token_ids.dtype, r.logprobs.tolist()) for r in group.rollouts]
    arrays += [None if r.routed_experts is None else r.routed_experts.tolist() for r in group.rollouts]
    others = [(r.response, r.finish_reason, r.versions, r.logprobs.dtype) for r in group.rollouts]
    solution = group.solution and [*vars(group.solution).items(), group.solution.token_ids.dtype]
    return [group.prompt, group.rewards, group.fault, arrays, others, repr(solution)]


def test_rounds_ask_for_what_is_missing_over_the_share_with_a_signal() -> None:
    """Whether a group has one is decided by accuracy alone."""
    collector, engines = build(config(), lambda number: number % 2 == 0)
    first = collector.collect(7, PhaseTimer())
    assert [count for count, _ in engines.rounds] == [
        4,
        4,
    ]  # 2 of 4 had a signal: 2 are missing, so 4 are asked
    assert numbers(first.asked) == list(range(8))
    assert numbers(first.chosen) == [0, 2, 4, 6] and not collector.carried
    assert first.metrics == {
        "groups_kept": 4,
        "groups_total": 8,
        "sampling_tries": 2,
        "groups_carried": 0,
        "groups_share": 0.5,
    }
    seeds = [seed for _, seed in engines.rounds]
    assert seeds[0] == 7 and len(set(seeds)) == 2  # a prompt that is asked again gets other responses


def test_surplus_is_trained_on_first_in_the_next_step_and_whole() -> None:
    collector, engines = build(config(oversampling=1.6), lambda number: True)
    chosen = [numbers(collector.collect(step, PhaseTimer()).chosen) for step in range(4)]
    assert chosen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert [count for count, _ in engines.rounds] == [7, 2, 5, 4]  # 1.6 for each of the 4, 1, 3, 2 missing
    assert numbers(collector.carried) == [16, 17]


def test_step_that_has_enough_asks_nothing() -> None:
    collector, _ = build(config(oversampling=3), lambda number: True)
    collector.collect(0, PhaseTimer())
    timer = PhaseTimer()
    second = collector.collect(1, timer)
    assert second.asked == [] and numbers(second.chosen) == [4, 5, 6, 7]
    assert second.metrics == {
        "groups_kept": 4,
        "groups_total": 0,
        "sampling_tries": 0,
        "groups_carried": 4,
    }
    assert "seconds_generate" not in timer.seconds()


def test_tries_and_prompts_of_a_round_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """The step then trains on what there is."""
    collector, engines = build(config(max_tries=3), lambda number: number == 5)
    found = collector.collect(2, PhaseTimer())
    assert [count for count, _ in engines.rounds] == [4, 16, 12]
    assert numbers(found.chosen) == [5] and found.metrics["sampling_tries"] == 3
    assert caplog.messages == [
        "step 2: 1 of 4 groups have a signal after 3 rounds of prompts (algorithm.dynamic_sampling.max_tries); "
        "1 of 32 prompts gave one"
    ]


def test_without_dynamic_sampling_a_step_asks_once(caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(config(), algorithm=AlgorithmConfig())
    collector, engines = build(settings, lambda number: number == 1)
    found = collector.collect(2, PhaseTimer())
    assert engines.rounds == [(4, 2)]
    assert (numbers(found.asked), numbers(found.chosen)) == ([0, 1, 2, 3], [1])
    assert found.metrics == {"groups_kept": 1, "groups_total": 4} and caplog.messages == []


def test_carried_groups_come_back_whole_from_a_file(tmp_path: Path) -> None:
    collector, _ = build(config(tmp_path, oversampling=2), lambda number: True)
    collector.collect(0, PhaseTimer())
    strange = make_group(
        replace(make_prompt(9, kind="a"), patches=(4, 16)), [0.1 + 0.2, 1], finish_reason="length"
    )
    solution = build_solution([7, 2], reward=0.9, accuracy=1.0, rewards=strange.rewards, smooth=True)
    routed = replace(strange.rollouts[0], routed_experts=np.arange(24, dtype=np.uint8).reshape(4, 3, 2))
    strange = replace(strange, rollouts=(routed, *strange.rollouts[1:]))
    collector.carried += [strange, replace(strange, solution=solution)]
    state = collector.save(1)
    resumed, engines = build(config(tmp_path, oversampling=2), lambda number: True)
    resumed.load(1, state)
    assert [flatten(group) for group in resumed.carried] == [flatten(group) for group in collector.carried]
    assert numbers(resumed.collect(1, PhaseTimer()).chosen) == [4, 5, 6, 7] and engines.rounds == []


def test_files_go_with_their_checkpoints(tmp_path: Path) -> None:
    """A step that carries nothing leaves no file, and none of a run that was killed between file and checkpoint."""
    group = make_group(make_prompt(), [1, 0])
    for step in (2, 4):
        save_carried(tmp_path, step, [group])
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000002").rmdir()
    save_carried(tmp_path, 6, [group])
    save_carried(tmp_path, 6, [])
    assert [path.name for path in (tmp_path / "carried").iterdir()] == ["step-00000004.npz"]


def test_file_of_a_checkpoint_that_is_still_being_written_stays(tmp_path: Path) -> None:
    """Checkpoints are completed in the background; a run that is killed before the next one is resumes from it."""
    group = make_group(make_prompt(), [1, 0])
    for step in (1, 2, 3):
        save_carried(tmp_path, step, [group])
        if step == 2:
            (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000002").mkdir()
    assert all(load_carried(tmp_path, step, 1) for step in (1, 2))


@pytest.mark.parametrize("damage", ["missing", "torn", "pickle", "fewer arrays", "other count"])
def test_damaged_file_is_a_loss_that_is_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_carried(tmp_path, 3, [make_group(make_prompt(), [1, 0])])
    path = tmp_path / "carried" / "step-00000003.npz"
    if damage == "missing":
        path.unlink()
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-40])
    if damage == "pickle":
        np.savez(path, groups=np.array([{}]), lengths=[0], token_ids=[0], logprobs=[0])
    if damage == "fewer arrays":
        with np.load(path) as data:
            np.savez(path, allow_pickle=False, **{**data, "lengths": data["lengths"][:1]})
    assert load_carried(tmp_path, 3, 2 if damage == "other count" else 1) == []
    (message,) = caplog.messages
    assert "carried over to step 3 are lost" in message and str(path) in message


def test_stages_limit_the_responses_of_their_steps() -> None:
    limits = []

    class Limited(Engines):
        def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed: int) -> list[Responses]:
            limits.append(sampling.max_tokens)
            return super().generate(prompts, sampling, seed)

    engines = Limited(lambda number: True)
    sampling = SamplingConfig(max_tokens=300, stages=((0, 100), (2, 300)))
    settings = replace(config(), sampling=sampling)
    collector = Collector(settings, cast(PromptStream, engines), engines.generate, engines.score)
    logged = [collector.collect(step, PhaseTimer()).metrics["max_tokens"] for step in range(4)]
    assert limits == logged == [100, 100, 300, 300]
