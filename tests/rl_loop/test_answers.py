"""Responses on disk: what may pass is asked again, what is asked twice is asked once, and one process writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.benchmarks.import_benchmark import Questions
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.encode.config import ImageConfig
from data_pipeline.errors import BadSample
from data_pipeline.files import read_json
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Sample
from data_pipeline.verify.config import CheckerConfig
from megatron_omr.faults import run_lock
from rl.config import EngineConfig, EvalConfig, SamplingConfig
from rl.evaluation import collect
from rl.evaluation.answers import AnswerLog, claim_answers
from rl.evaluation.ask import Answer
from rl.evaluation.benchmarks import evaluate_benchmarks, plan_benchmark
from rl.evaluation.collect import hold_out
from rl.evaluation.config import BenchmarksConfig
from rl.evaluation.run import evaluate
from rl.evaluation.scores import list_overrides
from rl.groups import build_records
from rl.rewards.config import RewardConfig
from tests.helpers.echo_engines import EchoEngine
from tests.helpers.groups import make_group, make_prompt

IMAGE = ImageConfig(min_pixels=784)
REWARD = RewardConfig(checker=CheckerConfig(workers=1))


@contextmanager
def start_echo(config: EvalConfig) -> Iterator[Answer]:
    """Takes the place of start_engines(): an engine that needs no weights."""
    engine = EchoEngine(0)
    yield lambda requests: (
        (number, *engine.answer([each.prompt], each.sampling, each.seed))
        for number, each in enumerate(requests)
    )


@pytest.fixture
def config(tiny_hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvalConfig:
    monkeypatch.setattr(collect, "start_engines", start_echo)
    return EvalConfig(
        model=str(tiny_hf),
        shards=str(tmp_path / "shards"),
        out=str(tmp_path / "out"),
        engine=EngineConfig(max_model_len=1_500, max_images=1),
        sampling=SamplingConfig(n=2, temperature=1.0, max_tokens=8),
        reward=REWARD,
        image=IMAGE,
    )


def write(config: EvalConfig, samples: Sequence[Sample]) -> None:
    write_shards(samples, Path(config.shards))


def test_question_that_could_not_be_read_is_asked_once_it_can(
    config: EvalConfig, caplog: pytest.LogCaptureFixture
):
    """As of a shard that is still being copied."""
    write(config, list(digit_samples("test", 4, seed=5, cell=28)))
    (shard,) = Path(config.shards).glob("*.tar")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: ShardIndex.load(config.shards)[2].offset])
    torn = evaluate(config)
    assert torn.count == 4 and torn.bad_questions["unreadable"] == 2
    shard.write_bytes(whole)
    found = evaluate(config)
    assert found.count == 4 and not found.bad_questions
    assert "2 questions that could not be read before are asked now" in caplog.text
    assert len((Path(config.out) / "responses.jsonl").read_bytes().splitlines()) == 8


def test_responses_outlive_shards_that_cannot_be_read_for_a_while(config: EvalConfig):
    """All there: they count. Some missing: nothing is asked, and nothing is lost."""
    write(config, list(digit_samples("test", 4, seed=5, cell=28)))
    found = evaluate(config)
    (shard,), path = Path(config.shards).glob("*.tar"), Path(config.out) / "responses.jsonl"
    whole, before = shard.read_bytes(), path.read_bytes()
    shard.write_bytes(whole[: ShardIndex.load(config.shards)[2].offset])
    assert evaluate(config) == found and path.read_bytes() == before
    with pytest.raises(ValueError, match="2 questions cannot be read now of which some responses are there"):
        evaluate(replace(config, sampling=replace(config.sampling, n=3)))
    assert path.read_bytes() == before
    shard.write_bytes(whole)
    assert evaluate(replace(config, sampling=replace(config.sampling, n=3))).count == 4


def test_samples_of_one_id_are_one_question(config: EvalConfig, caplog: pytest.LogCaptureFixture):
    """With a baseline, which has a guess for each question."""
    samples = list(digit_samples("test", 3, seed=5, cell=28))
    write(config, [*samples, samples[0]])
    found = evaluate(replace(config, train_shards=(config.shards,)))
    assert found.count == 3 and found.baseline and found.baseline.by_text.count == 3
    assert "1 samples have the id of another one, and are not asked again" in caplog.text


@pytest.mark.parametrize("order", [(0, 1, "fault"), ("fault", 0, 1), (1, "fault", 0)])
def test_fault_takes_the_place_of_all_responses_to_its_question(order: Sequence[int | str], tmp_path: Path):
    """Whichever came first, and read again after a kill."""
    prompt, path = make_prompt(), tmp_path / "responses.jsonl"
    records = build_records(make_group(prompt, [1, 1]))
    with AnswerLog(path) as answers:
        for step in order:
            if isinstance(step, int):
                answers.add(records[step])
            else:
                answers.refuse(prompt, BadSample("image", "cannot decode"))
        assert len(answers) == 1 and answers.has(prompt, 0) and answers.has(prompt, 1)
    with AnswerLog(path) as answers:
        ((record,),) = answers.sort([prompt])
        assert record.fault == "image: cannot decode"
        answers.forget_passed([prompt])
        assert len(answers) == 1, "pixels do not come back"


def test_config_on_disk_is_that_of_what_was_asked(config: EvalConfig):
    write(config, list(digit_samples("test", 4, seed=5, cell=28)))
    evaluate(config)
    with pytest.raises(ValueError, match="may grow, not shrink"):
        evaluate(replace(config, subset=2))
    assert read_json(Path(config.out) / "config.json")["subset"] == 0


def test_folder_that_another_evaluation_writes_is_refused(
    config: EvalConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.1)
    write(config, list(digit_samples("test", 2, seed=5, cell=28)))
    evaluate(config)
    said = f"another omr eval is writing {config.out}: process .* choose another folder with --out"
    with hold_out(config.out), pytest.raises(ValueError, match=said):
        evaluate(config)
    evaluate(config)


def test_number_of_checkers_may_change(config: EvalConfig):
    """They decide nothing, and another machine has another number of cores."""
    write(config, list(digit_samples("test", 2, seed=5, cell=28)))
    claim_answers(config)
    claim_answers(replace(config, reward=RewardConfig(checker=CheckerConfig(workers=3))))
    with pytest.raises(ValueError, match=r"reward.checker.mode was 'strict', is 'released'"):
        claim_answers(replace(config, reward=RewardConfig(checker=CheckerConfig(mode="released"))))


def test_folder_is_not_claimed_by_a_command_that_finds_no_questions(tiny_hf: Path, tmp_path: Path):
    out = tmp_path / "out"
    config = BenchmarksConfig(
        model=str(tiny_hf),
        out=str(out),
        root=str(tmp_path / "root"),
        path=str(tmp_path / "none"),
        reward=REWARD,
    )
    with pytest.raises(ValueError, match="has no aime24"):
        evaluate_benchmarks([BENCHMARKS["aime24"]], config)
    assert not out.exists()


def test_limit_that_the_context_cuts_is_not_the_published_one(
    config: EvalConfig, caplog: pytest.LogCaptureFixture
):
    write(config, list(digit_samples("test", 3, seed=5, cell=28)))
    benchmark = BENCHMARKS["mathvista_testmini"]
    source = Questions(benchmark=benchmark, shards=config.shards, rows=3, dropped=0)
    planned = plan_benchmark(source, replace(config, sampling=SamplingConfig(n=1, max_tokens=49_152)))
    longest = max(prompt.num_tokens for prompt, _ in planned.questions)
    assert planned.room == 1_500 - longest
    override = list_overrides(benchmark, planned.config, planned.room)["sampling.max_tokens"]
    assert (override.published, override.used) == (49_152, 1_500 - longest)
    assert f"of sampling.max_tokens=49,152 only {1_500 - longest:,} are left" in caplog.text


@pytest.mark.parametrize("name", ["dynamath", "wemath_testmini", "mathverse_testmini", "mathvista_testmini"])
def test_question_of_a_benchmark_that_cannot_be_read_is_refused(config: EvalConfig, name: str):
    """Its group would be another one, and with it the number; or the longest prompt, and with it the limit."""
    notes = {"group": "1", "problem_index": "1"}
    write(config, [replace(each, metadata=notes) for each in digit_samples("test", 4, seed=5, cell=28)])
    (shard,) = Path(config.shards).glob("*.tar")
    shard.write_bytes(shard.read_bytes()[:-12_000])
    source = Questions(benchmark=BENCHMARKS[name], shards=config.shards, rows=4, dropped=0)
    with pytest.raises(
        ValueError, match=r"[12] of 4 samples of .* cannot be read (or have no \w+, )?such as"
    ):
        plan_benchmark(source, config)


def test_benchmark_whose_questions_lack_their_cluster_is_refused(config: EvalConfig):
    """As CharXiv in shards of before charts were resampled: the interval would be one of single questions."""
    write(config, list(digit_samples("test", 3, seed=5, cell=28)))
    source = Questions(benchmark=BENCHMARKS["charxiv_descriptive"], shards=config.shards, rows=3, dropped=0)
    with pytest.raises(ValueError, match=r"3 of 3 samples of .* cannot be read or have no chart, such as"):
        plan_benchmark(source, config)


def test_benchmark_without_questions_is_refused(config: EvalConfig):
    write(config, [])
    source = Questions(benchmark=BENCHMARKS["aime24"], shards=config.shards, rows=0, dropped=0)
    with pytest.raises(ValueError, match="holds no questions; write shards there"):
        plan_benchmark(source, config)
