"""The stream of prompts: its order, its cursor, and prompts that cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFile

from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.config import EngineConfig, PromptConfig, RLConfig
from rl.prompts.stream import PromptStream, load_prompt_limits, read_prompts
from rl.prompts.weights import PassRates
from rl.types import Prompt, Responses
from tests.helpers.bad_samples import bad_questions
from tests.helpers.groups import make_group

IMAGE = ImageConfig(min_pixels=784)
ENGINE = EngineConfig(max_model_len=1_500, max_images=1)


@pytest.fixture(scope="module")
def config(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> RLConfig:
    folder = tmp_path_factory.mktemp("prompts") / "train"
    samples = digit_samples("train", 7, seed=5, cell=28)
    write_shards(samples, folder, ShardConfig(samples_per_shard=3))
    return RLConfig(
        run="", model=str(tiny_hf), shards=str(folder), seed=1, prompts_per_step=3, image=IMAGE, engine=ENGINE
    )


def write_with_bad(config: RLConfig, folder: Path, *, good: int) -> tuple[RLConfig, set[str]]:
    """Writes all kinds of bad questions among `good` others; returns the ids of these."""
    samples = list(digit_samples("train", max(1, good), seed=5, cell=28))
    write_shards([*(sample for sample, _ in bad_questions(samples[0]).values()), *samples[:good]], folder)
    return replace(config, shards=str(folder)), {sample.id for sample in samples[:good]}


def answer(prompts: Sequence[Prompt]) -> list[Responses]:
    """Answers as an engine that finds the broken pixels."""
    torn = Responses(fault="image", detail="cannot decode")
    return [torn if prompt.ref.id == "bad/torn" else Responses() for prompt in prompts]


def ids(prompts: Iterable[Prompt]) -> list[str]:
    return [prompt.ref.id for prompt in prompts]


def test_epoch_asks_every_prompt_once_in_its_own_order(config: RLConfig) -> None:
    stream = PromptStream(config)
    epochs = [ids(stream.take(7)) for _ in range(3)]
    assert all(len(set(epoch)) == 7 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_cursor_resumes_in_the_middle_of_an_epoch(config: RLConfig) -> None:
    stream = PromptStream(config)
    stream.take(10)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = ids(stream.take(9))
    resumed = PromptStream(config)
    resumed.load_state_dict(state)
    assert ids(resumed.take(9)) == expected


def test_cursor_of_another_seed_is_refused(config: RLConfig) -> None:
    state = PromptStream(config).state_dict()
    with pytest.raises(ValueError, match="seed=1, this run has 2"):
        PromptStream(replace(config, seed=2)).load_state_dict(state)


def test_prompt_holds_the_question_without_its_images(config: RLConfig) -> None:
    samples = {sample.id: sample for sample in digit_samples("train", 7, seed=5, cell=28)}
    for prompt, fault in read_prompts(config.shards, load_prompt_limits(config)):
        assert fault is None
        sample = samples[prompt.ref.id]
        assert (prompt.answer, prompt.source) == (sample.answer, sample.source)
        assert prompt.kind == sample.metadata["kind"]
        assert prompt.question and "<image>" not in prompt.question
        assert prompt.question in sample.messages[1].content


def test_bad_prompts_are_skipped_named_and_counted(
    config: RLConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In two epochs; one whose pixels are broken is found by the engine, once."""
    config, good = write_with_bad(config, tmp_path / "s", good=6)
    stream = PromptStream(config)
    seen = [prompt.ref.id for _ in range(4) for prompt, _ in stream.ask(3, answer)]
    assert set(seen[:6]) == set(seen[6:]) == good
    counts = {"image": 4, "no_reference": 1, "text": 3, "too_long": 1}
    assert all(n <= stream.skipped[f"skipped_prompts_{name}"] <= 2 * n for name, n in counts.items())
    assert stream.skipped["skipped_prompts"] == stream._bad.total > 9
    for name, (_, words) in bad_questions(next(digit_samples("train", 1, seed=5, cell=28))).items():
        assert f"skipped prompt bad/{name}: {words}" in caplog.text
    resumed = PromptStream(config)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert {prompt.ref.id for _ in range(2) for prompt, _ in resumed.ask(3, answer)} == good


def test_images_are_not_decoded(config: RLConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("the driver decodes an image")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    assert len(PromptStream(config).take(7)) == 7


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize("limit", [1.0, 1_000_000])
def test_run_ends_when_no_prompt_can_be_asked(
    config: RLConfig, tmp_path: Path, good: int, limit: float
) -> None:
    """Whatever the limit allows; one good prompt among nine bad ones is enough to go on."""
    config, _ = write_with_bad(config, tmp_path / "s", good=good)
    stream = PromptStream(replace(config, max_bad_samples=limit))
    if good:
        assert len(stream.ask(3, answer)) == 3
    else:
        with pytest.raises(ValueError, match=r"(?s)none of the prompts of .* can be asked:.*bad/.*--model"):
            stream.ask(3, answer)


def test_prompt_that_the_engine_cannot_read_is_replaced_by_the_next(config: RLConfig) -> None:
    bad = ids(PromptStream(config).take(5))[1]

    def generate(prompts: list[Prompt]) -> list[Responses]:
        torn = Responses(fault="image", detail="torn")
        return [torn if p.ref.id == bad else Responses() for p in prompts]

    stream, plain = PromptStream(config), PromptStream(config)
    asked = [prompt for prompt, _ in stream.ask(3, generate)]
    assert ids(asked) == [name for name in ids(plain.take(4)) if name != bad]
    assert stream.skipped == {"skipped_prompts": 1, "skipped_prompts_image": 1}
    assert stream.state_dict() == plain.state_dict()  # so that a resumed run goes on behind it


def test_too_many_bad_prompts_stop_the_run(config: RLConfig) -> None:
    def generate(prompts: list[Prompt]) -> list[Responses]:
        return [Responses(fault="text", detail="forged") for _ in prompts]

    with pytest.raises(ValueError, match=r"5 of 6 prompts are bad, more than max_bad_samples=4.*\n.*5 text"):
        PromptStream(replace(config, max_bad_samples=4)).ask(3, generate)


def with_rates(config: RLConfig, folder: Path, rates: Sequence[float | None]) -> RLConfig:
    """Writes samples with these pass rates, None without one."""
    samples = digit_samples("train", len(rates), seed=5, cell=28)
    scored = [
        replace(sample, metadata=sample.metadata | ({} if rate is None else {"pass_rate": rate}))
        for sample, rate in zip(samples, rates, strict=True)
    ]
    write_shards(scored, folder, ShardConfig(samples_per_shard=3))
    return replace(config, shards=str(folder), prompts=PromptConfig(order="easy_first"))


def test_easy_prompts_come_first_in_every_epoch(config: RLConfig, tmp_path: Path) -> None:
    """Equal ones in the shuffled order, which differs from epoch to epoch."""
    rates = [0.5, 1.0, 0.25, 1.0, 0.0, 0.75, 1.0]
    config = with_rates(config, tmp_path / "s", rates)
    by_id = dict(zip((ref.id for ref in ShardIndex.load(config.shards)), rates, strict=True))
    stream = PromptStream(config)
    epochs = [ids(stream.take(7)) for _ in range(4)]
    assert all([by_id[id] for id in epoch] == sorted(rates, reverse=True) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    for taken in (0, 5, 7, 10):
        first, resumed = PromptStream(config), PromptStream(config)
        first.take(taken)
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert ids(resumed.take(9)) == ids(first.take(9))


def test_easy_first_needs_a_pass_rate_of_each_sample(config: RLConfig, tmp_path: Path) -> None:
    config = with_rates(config, tmp_path / "s", [0.5, None, None, 1.0])
    with pytest.raises(ValueError, match=r"2 of 4 samples of .* have none, such as .*`omr data score`"):
        PromptStream(config).take(1)


def learned(config: RLConfig, rates: Sequence[float]) -> PromptStream:
    """Returns a stream that has seen all samples, with these pass rates of ten responses."""
    stream = PromptStream(config)
    prompts = sorted(stream.take(len(rates)), key=lambda prompt: prompt.ref.id)
    right = [[number < 10 * rate for number in range(10)] for rate in rates]
    stream.learn(0, [make_group(prompt, which) for prompt, which in zip(prompts, right, strict=True)])
    return stream


def test_prompts_are_drawn_again_in_proportion_to_the_variance_of_their_reward(config: RLConfig) -> None:
    index, rates = ShardIndex.load(config.shards), [0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0]
    learned_rates = PassRates(index, seed=3)
    right = [[number < 10 * rate for number in range(10)] for rate in rates]
    prompts = [Prompt(ref=ref, answer="") for ref in index]
    learned_rates.learn([make_group(prompt, which) for prompt, which in zip(prompts, right, strict=True)])
    assert learned_rates.draw(1, 0) == [], "there are no weights yet"
    learned_rates.refresh()
    drawn = [ref for number in range(2_000) for ref in learned_rates.draw(1, number)]
    weights = np.array([rate * (1 - rate) for rate in rates])
    shares = np.array([drawn.count(ref) for ref in index]) / 2_000
    assert shares[[0, 6]].tolist() == [0, 0]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.04)  # 4 standard deviations


def test_prompts_that_are_not_drawn_by_weight_come_in_order(config: RLConfig) -> None:
    config = replace(config, prompts=PromptConfig(weighted_share=0.5, refresh=2))
    stream, plain = learned(config, [0.5] * 7), PromptStream(replace(config, prompts=PromptConfig()))
    plain.take(7)
    assert ids(p for p, _ in stream.ask(4, answer)) == ids(plain.take(4)), "there are no weights yet"
    stream.learn(1, [])  # after two steps
    asked = [ids(prompt for prompt, _ in stream.ask(4, answer)) for _ in range(5)]
    assert [id for ids in asked for id in ids[2:]] == ids(plain.take(10))


def test_no_prompt_is_drawn_twice_in_a_round(config: RLConfig) -> None:
    """Its responses would be the same. Where fewer have a weight, the stream gives more."""
    config = replace(config, prompts=PromptConfig(weighted_share=0.9, refresh=1))
    stream = learned(config, [0, 0, 0.3, 0.5, 0.6, 1, 1])
    asked = ids(prompt for prompt, _ in stream.ask(10, answer))
    assert len(asked) == 10 and set(asked[3:]) == set(asked), "fewer than ten are there"
    stream = learned(config, [0.5] * 7)
    for _ in range(9):
        assert len(set(ids(prompt for prompt, _ in stream.ask(5, answer)))) == 5


def test_learned_rates_resume(config: RLConfig) -> None:
    """Also between two refreshes, when the weights are older than the rates."""
    config = replace(config, prompts=PromptConfig(weighted_share=0.5, refresh=2))
    stream = learned(config, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    stream.learn(1, [])
    groups = [make_group(prompt, [1, 1, 0]) for prompt in stream.take(4)]
    stream.learn(2, groups)
    resumed = PromptStream(config)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    for step in range(3, 9):
        seen = [[prompt for prompt, _ in each.ask(5, answer)] for each in (stream, resumed)]
        assert ids(seen[0]) == ids(seen[1])
        for each in (stream, resumed):
            each.learn(step, [make_group(prompt, [1, 0]) for prompt in seen[0][:2]])
    assert resumed.state_dict() == stream.state_dict()


def test_every_sample_is_located_by_its_reference(config: RLConfig) -> None:
    index = ShardIndex.load(config.shards)
    assert [index.locate(ref) for ref in index] == list(range(7))
