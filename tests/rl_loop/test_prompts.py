"""The stream of prompts: its order, its cursor, and prompts that cannot be asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Sample
from rl.config import RLConfig
from rl.prompts import PromptStream, read_prompts
from rl.types import Prompt, Responses

IMAGE = ImageConfig(min_pixels=784)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RLConfig:
    folder = tmp_path_factory.mktemp("prompts") / "train"
    samples = digit_samples("train", 7, seed=5, cell=28)
    write_shards(samples, folder, ShardConfig(samples_per_shard=3))
    return RLConfig(run="", model="", shards=str(folder), seed=1, prompts_per_step=3, image=IMAGE)


def write_with_one_bad(config: RLConfig, folder: Path, **fault: object) -> tuple[RLConfig, list[Sample]]:
    """Writes four samples, of which the second gets `fault`."""
    samples = list(digit_samples("train", 4, seed=5))
    write_shards([samples[0], replace(samples[1], **fault), *samples[2:]], folder)
    return replace(config, shards=str(folder)), samples


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
    for prompt in read_prompts(config.shards, image=IMAGE):
        sample = samples[prompt.ref.id]
        assert (prompt.answer, prompt.source) == (sample.answer, sample.source)
        assert prompt.kind == sample.metadata["kind"]
        assert prompt.question and "<image>" not in prompt.question
        assert prompt.question in sample.messages[1].content


def test_file_that_is_no_image_is_skipped_and_counted(config: RLConfig, tmp_path: Path) -> None:
    config, samples = write_with_one_bad(config, tmp_path / "s", images=(b"no image",))
    stream = PromptStream(config)
    assert set(ids(stream.take(3))) == {s.id for s in samples} - {samples[1].id}
    assert stream.num_skipped == 1


def test_prompt_without_a_reference_is_skipped_and_counted(config: RLConfig, tmp_path: Path) -> None:
    config, samples = write_with_one_bad(config, tmp_path / "s", answer=" ")
    stream = PromptStream(config)
    assert len(stream.take(len(samples) - 1)) == len(samples) - 1
    assert stream.num_skipped == 1


def test_prompt_that_the_engine_cannot_read_is_replaced_by_the_next(config: RLConfig) -> None:
    bad = ids(PromptStream(config).take(5))[1]

    def generate(prompts: list[Prompt]) -> list[Responses]:
        torn = Responses(fault="image", detail="torn")
        return [torn if p.ref.id == bad else Responses() for p in prompts]

    stream, plain = PromptStream(config), PromptStream(config)
    asked = [prompt for prompt, _ in stream.ask(generate)]
    assert ids(asked) == [name for name in ids(plain.take(4)) if name != bad]
    assert stream.num_skipped == 1
    assert stream.state_dict() == plain.state_dict()  # so that a resumed run goes on behind it


def test_too_many_bad_prompts_stop_the_run(config: RLConfig) -> None:
    def generate(prompts: list[Prompt]) -> list[Responses]:
        return [Responses(fault="text", detail="forged") for _ in prompts]

    with pytest.raises(ValueError, match=r"5 of 6 prompts are bad, more than max_bad_samples=4.*\n.*5 text"):
        PromptStream(replace(config, max_bad_samples=4)).ask(generate)


def test_evaluation_names_the_question_that_cannot_be_asked(config: RLConfig, tmp_path: Path) -> None:
    config, samples = write_with_one_bad(config, tmp_path / "s", images=(b"no image",))
    with pytest.raises(ValueError, match=f"question {samples[1].id} cannot be asked: image"):
        read_prompts(config.shards, image=IMAGE)
