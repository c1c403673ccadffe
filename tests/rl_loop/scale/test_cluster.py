"""The real manager and modes with modelled engines: nothing is lost, time adds up, and the cost stays in proportion."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale.cluster import ClusterConfig, make_prompts
from benchmarks.scale.overhead import measure_memory, measure_overhead, start_engines, submit
from benchmarks.scale.plot import draw_utilisation
from benchmarks.scale.speed import Lengths
from benchmarks.scale.training import Setting, Training, measure

SHORT = Lengths(median=200, longest=2_000)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    num_engines=st.integers(1, 6),
    num_prompts=st.integers(0, 60),
    slots=st.integers(1, 24),
    deaths=st.sampled_from([0.0, 6.0]),  # with many more, engines die one after another, which ends a run
    seed=st.integers(0, 100),
)
def test_every_prompt_is_answered_once_with_its_own_responses(
    num_engines: int, num_prompts: int, slots: int, deaths: float, seed: int
) -> None:
    config = ClusterConfig(slots=slots, lengths=SHORT, deaths_per_hour=deaths, start_seconds=5.0, seed=seed)
    cluster, manager = start_engines(num_engines, config)
    prompts = make_prompts(num_prompts)
    futures = submit(manager, prompts, n=3)
    told: list[int] = []
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: told.append(number))
    manager.wait(futures)
    assert sorted(told) == list(range(num_prompts))
    for prompt, future in zip(prompts, futures, strict=True):
        lengths = SHORT.draw(prompt.ref.offset, 3).tolist()
        assert [len(rollout.token_ids) for rollout in future.result().rollouts] == lengths
    # those that die when nobody waits any more are not seen
    assert 0 <= cluster.died - manager.restarts <= num_engines


def test_the_manager_keeps_all_slots_busy_while_prompts_wait() -> None:
    config = ClusterConfig(slots=32, lengths=SHORT)
    cluster, manager = start_engines(4, config)
    futures = submit(manager, make_prompts(200), n=4)
    start = cluster.now
    while sum(future.done() for future in futures) < 120:
        manager.pump_once()
    assert cluster.used("slots") > 0.98 * 4 * 32 * (cluster.now - start)
    manager.wait(futures)


def run(mode: str, **options: float) -> Training:
    setting = Setting(
        mode=mode,
        engines=2,
        prompts_per_step=8,
        steps=6,
        trainer_seconds=10.0,
        cluster=ClusterConfig(slots=64, lengths=SHORT, update_seconds=1.0),
        **options,
    )
    training = Training(setting)
    training.run()
    assert set(training.trained.values()) == {1}
    assert len(training.trained) == 6 * 8
    return training


def test_modes_train_on_each_prompt_once_and_within_their_staleness() -> None:
    sync, one_off = run("sync"), run("one_step_off")
    assert set(sync.ages) == {0}
    assert set(one_off.ages) == {0, 1}  # the first step generates its own
    seconds = {"sync": measure(sync)["seconds a step"], "one": measure(one_off)["seconds a step"]}
    for staleness in (1, 2):
        training = run("async", max_staleness=staleness)
        assert max(training.ages) <= staleness
        assert list(training.trained) == [str(number) for number in range(48)]  # in the order of asking
        seconds[str(staleness)] = measure(training)["seconds a step"]
    assert seconds["sync"] > seconds["one"] > seconds["2"]
    assert seconds["sync"] > sync.setting.trainer_seconds + 1.0


def test_ready_first_begins_with_short_responses_and_keeps_its_bound() -> None:
    free = run("ready_first", max_staleness=2)
    assert measure(free)["lengths"][0] < measure(run("async", max_staleness=2))["lengths"][0]
    bounded = run("ready_first", max_staleness=2, bound=3)
    assert max(bounded.ages) <= 3


def test_seconds_of_a_step_are_those_of_generation_trainer_and_update() -> None:
    """In sync mode they follow each other, so that they add up to the step, and engines only decode in the first."""
    training = run("sync")
    first, last = training.steps[0], training.steps[-1]
    seconds = 5 * (10.0 + 1.0) + last.waited - first.waited
    assert last.time - first.time == pytest.approx(seconds, abs=0.5)
    assert last.decoding - first.decoding <= 2 * (last.waited - first.waited)


def test_cost_of_a_prompt_hardly_depends_on_how_many_are_in_flight() -> None:
    config = ClusterConfig(slots=256, lengths=SHORT, has_tokens=False)
    few, many = (measure_overhead(8, count, config, n=1) for count in (1_000, 10_000))
    assert many.seconds_a_prompt < 10 * few.seconds_a_prompt
    spread = measure_overhead(80, 1_000, config, n=1)
    assert spread.seconds_a_prompt < 10 * few.seconds_a_prompt


def test_memory_of_prompts_in_flight_is_linear_and_small() -> None:
    found = measure_memory(4, [1_000, 2_000, 4_000], ClusterConfig(lengths=SHORT))
    assert found["largest deviation from the line"] < 0.2
    assert 200 < found["bytes a prompt"] < 10_000


def test_plot_has_a_bar_for_each_mode() -> None:
    values = {"decoding": 0.5, "computing prompts": 0.1, "taking weights": 0.1, "seconds a step": 12.3}
    svg = draw_utilisation([("trainer < half", [("sync", values), ("async", values)])])
    assert svg.count('fill="#2a6f97"') == 3  # and the legend
    assert "trainer &lt; half" in svg
