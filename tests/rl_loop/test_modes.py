"""The modes of the loop, with engines and a trainer in this process: a run that stops and resumes is a whole one."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.failures import RankError
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.verify.config import CheckerConfig
from megatron_omr.config import CheckpointConfig, LogConfig
from rl.algorithms.config import AlgorithmConfig, DynamicSamplingConfig, SolutionConfig
from rl.config import EngineConfig, HeldOutConfig, PromptConfig, RLConfig, RolloutConfig, SamplingConfig
from rl.rewards.config import RewardConfig
from rl.types import Responses
from tests.helpers.echo_engines import EchoEngines
from tests.helpers.fake_training import Guesser, Trainer, run_mode
from tests.helpers.processes import wait_until
from tests.helpers.rl_rows import rows


@pytest.fixture
def config(tiny_hf: Path, tmp_path: Path) -> RLConfig:
    """All that changes which prompts, responses and groups are trained on, at once."""
    for split, count in (("train", 60), ("test", 9)):
        write_shards(digit_samples(split, count, seed=5, cell=28), tmp_path / split)
    asked = [replace(sample, source="amc23") for sample in digit_samples("test", 9, seed=5, cell=28)]
    write_shards(asked, tmp_path / "amc23")
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
        held_out=HeldOutConfig(
            shards=str(tmp_path / "test"),
            benchmarks=(("amc23", str(tmp_path / "amc23")),),
            every=2,
            at_start=True,
        ),
        reward=RewardConfig(checker=CheckerConfig(workers=1)),
        algorithm=AlgorithmConfig(
            advantage="task_scale",
            mask_truncated=True,
            dynamic_sampling=DynamicSamplingConfig(enabled=True, oversampling=3.0, max_tries=3),
        ),
        checkpoint=CheckpointConfig(every=1),
        log=LogConfig(tensorboard=False),
    )


@pytest.mark.parametrize("mode", ["sync", "one_step_off"])
def test_run_in_parts_equals_a_whole_one_with_held_out_questions(
    config: RLConfig, tmp_path: Path, mode: str
) -> None:
    """Carried groups, those of the next step, learned pass rates, the scale of tasks and the stage resume."""
    config = replace(config, rollout=RolloutConfig(mode=mode))  # type: ignore[arg-type]
    whole, parts = run_mode(config), []
    disturbed = replace(config, run=str(tmp_path / "parts"), held_out=HeldOutConfig())
    for steps in (1, 1, 3, None):
        parts += run_mode(disturbed, steps=steps)
    assert parts == whole
    ages = [{age for _, age, *_ in step} for step in whole]
    assert max(ages[0]) == 0 and {0, 1} <= set.union(*ages), "groups were carried over"
    # but for the first step, the next one's are generated before it has ended
    assert mode == "sync" or all(min(step) >= 1 for step in ages[1:])
    seen = rows(config.run)
    assert [row["max_tokens"] for row in seen] == [20] * 3 + [40] * 5
    for metric in ("held_out_version", "held_out/amc23/version"):
        assert [row.get(metric) for row in seen] == [0, None, 2, None, 4, None, 6, 8]
    assert all(0 < row["held_out/amc23/avg@8"] < 1 for row in seen[::2])
    for row, step in zip(seen, ages, strict=True):
        assert row["staleness_max"] == max(step) and (row["stale_tokens"] > 0) == (max(step) > 0)


def test_every_step_names_the_prompts_that_it_trained_on(config: RLConfig, tmp_path: Path) -> None:
    """Also after a stop; oldest and newest version of each group."""
    whole = run_mode(config)
    trained = rows(config.run, "trained")
    assert [row["step"] for row in trained] == list(range(8))
    for row, step in zip(trained, whole, strict=True):
        ages = {(id, age) for id, age, *_ in step}
        named = {(group["id"], row["step"] - group["oldest"]) for group in row["groups"]}
        assert named == ages and all(group["oldest"] == group["newest"] for group in row["groups"])


def test_async_trains_on_the_prompts_of_sync_in_the_same_steps(config: RLConfig, tmp_path: Path) -> None:
    """Wherever it stops, and with engines that die; held-out questions are of one version, that of their step."""
    config = replace(config, prompts=PromptConfig(), algorithm=AlgorithmConfig(drop_equal_groups=False))
    run_mode(config)
    config = replace(
        config,
        run=str(tmp_path / "async"),
        rollout=RolloutConfig(mode="async", max_staleness=1.5),
        held_out=replace(config.held_out, every=3),
    )
    for steps in (1, 3, None):
        run_mode(config, lambda: EchoEngines(deaths=[9], kind=Guesser), steps=steps)
    seen, wanted = rows(config.run, "trained"), rows(tmp_path / "whole", "trained")
    assert [[group["id"] for group in row["groups"]] for row in seen] == [
        [group["id"] for group in row["groups"]] for row in wanted
    ]
    assert all(
        0 <= row["step"] - group["oldest"] <= 2 and group["oldest"] <= group["newest"] <= row["step"]
        for row in seen
        for group in row["groups"]
    )
    metrics = rows(config.run)
    for metric in ("held_out_version", "held_out/amc23/version"):
        assert [row.get(metric) for row in metrics] == [0, None, None, 3, None, None, 6, 8]
    assert any(row["staleness_mean"] > 0 for row in metrics) and all("seconds_wait" in row for row in metrics)


@pytest.mark.parametrize("has_solutions", [False, True])
def test_async_fills_its_steps_with_groups_that_have_a_signal(config: RLConfig, has_solutions: bool) -> None:
    """A solution gives nearly every group one."""
    algorithm = AlgorithmConfig(
        name="grpo",
        solution=SolutionConfig(enabled=has_solutions),
        dynamic_sampling=DynamicSamplingConfig(enabled=True),
    )
    config = replace(config, steps=4, algorithm=algorithm, rollout=RolloutConfig(mode="async"))
    for steps in (1, 2, None):
        run_mode(config, steps=steps)
    seen = rows(config.run)
    assert [row["groups_kept"] for row in seen] == [5] * 4 and all(
        0 < row["groups_share"] <= 1 for row in seen
    )
    assert has_solutions or sum(row["groups_total"] for row in seen) > 20
    assert all(row.get("solutions_used", 0) > 0 for row in seen) == has_solutions


def test_async_ends_with_what_went_wrong(config: RLConfig) -> None:
    config = replace(config, algorithm=AlgorithmConfig(), prompts=PromptConfig(), max_bad_samples=2)
    config = replace(config, rollout=RolloutConfig(mode="async"))

    class Torn(Guesser):
        def answer(self, prompts, sampling, step_seed):  # type: ignore[no-untyped-def]
            return [Responses(fault="image", detail="torn") for _ in prompts]

    with pytest.raises(ValueError, match="3 of .* prompts are bad, more than max_bad_samples=2"):
        run_mode(config, lambda: EchoEngines(kind=Torn))
    with pytest.raises(RankError, match="engines died"):
        run_mode(config, lambda: EchoEngines(deaths=range(99), kind=Guesser))


@pytest.mark.parametrize("num_engines", [1, 2])
def test_one_step_off_never_sends_weights_under_a_version_that_the_trainer_no_longer_has(
    config: RLConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, num_engines: int
) -> None:
    """An engine dies while step 2 trains. Alone, the one in its place is given the weights after step 2, as these."""
    config = replace(
        config,
        steps=4,
        engine=replace(config.engine, num_engines=num_engines),
        algorithm=AlgorithmConfig(drop_equal_groups=False),
        held_out=HeldOutConfig(),
        rollout=RolloutConfig(mode="one_step_off"),
    )
    steps_done, killed, sent = [0], threading.Event(), list[tuple[int, int]]()

    class Watched(EchoEngines):
        def _update(self, engines, version):  # type: ignore[no-untyped-def]
            sent.append((version, steps_done[0]))
            return super()._update(engines, version)

        def _busy(self):  # type: ignore[no-untyped-def]
            return [e for e in super()._busy() if killed.is_set() or all(r.seed != 3 for _, r in e.open)]

    park, train = Watched(kind=Guesser), Trainer.train

    def kill_and_train(self, minibatches, version):  # type: ignore[no-untyped-def]
        if version == 2:
            wait_until(lambda: park.started[-1].open)
            killed.set()
            park.kill(park.started[-1])
            wait_until(lambda: len(park.started) > num_engines)
        steps_done[0] = version + 1
        return train(self, minibatches, version)

    monkeypatch.setattr(Trainer, "train", kill_and_train)
    assert len(run_mode(config, lambda: park)) == 4 and len(park.started) == num_engines + 1
    assert all(version == done for version, done in sent), sent
    assert rows(config.run)[3]["staleness_max"] == (num_engines > 1)
    assert ("step 3 is generated with the weights after 2: engine 0" in caplog.text) == (num_engines == 1)


def test_one_step_off_saves_solutions_with_the_groups_of_the_next_step(
    config: RLConfig, tmp_path: Path
) -> None:
    algorithm = AlgorithmConfig(name="grpo", solution=SolutionConfig(enabled=True), drop_equal_groups=False)
    config = replace(config, steps=3, algorithm=algorithm, rollout=RolloutConfig(mode="one_step_off"))
    whole, again = run_mode(config), replace(config, run=str(tmp_path / "parts"))
    assert run_mode(again, steps=1) + run_mode(again, steps=1) + run_mode(again) == whole
    seen = [[row["solutions_used"] for row in rows(run.run)] for run in (config, again)]
    assert seen[0] == seen[1] and all(seen[0])


def test_one_step_off_without_the_file_of_the_next_step_asks_on(
    config: RLConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, rollout=RolloutConfig(mode="one_step_off"))
    run_mode(config, steps=2)
    (tmp_path / "whole/carried/step-00000002.npz").unlink()
    assert len(run_mode(config)) == 6
    assert "carried over to step 2 are lost" in caplog.text
