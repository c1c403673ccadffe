"""The stream of prompts: its order, its cursor, and prompts that cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import ImageFile

from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.config import EngineConfig, RLConfig
from rl.prompts.stream import PromptStream, load_prompt_limits, read_prompts
from rl.types import Prompt, Responses
from tests.helpers.bad_samples import bad_questions

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


def ids(prompts: Sequence[Prompt]) -> list[str]:
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
