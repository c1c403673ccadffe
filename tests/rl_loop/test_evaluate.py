"""Evaluation: the numbers of a summary, its intervals, and one real run through vLLM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from data_pipeline.encode.config import ImageConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Sample
from data_pipeline.verify.config import CheckerConfig
from data_pipeline.verify.pool import VerifyPool
from data_pipeline.verify.record import read_responses
from rl.config import EngineConfig, EvalConfig, SamplingConfig
from rl.evaluation.baseline import describe_seen, score_baseline
from rl.evaluation.intervals import bootstrap_ci95
from rl.evaluation.run import evaluate
from rl.evaluation.summary import summarize
from rl.groups import build_records
from rl.types import AskedResponse
from tests.helpers.bad_samples import bad_questions
from tests.helpers.groups import make_group, make_prompt


def test_accuracy_is_the_mean_over_questions_and_by_kind() -> None:
    groups = [
        make_group(make_prompt(0, kind="sum"), (1.0, 0.0), lengths=(5, 5)),
        make_group(make_prompt(1, kind="sum"), (1.0, 1.0), lengths=(5, 5)),
        make_group(make_prompt(2, kind="count"), (0.0, 0.0), lengths=(9, 9), finish_reason="length"),
    ]
    summary = summarize([build_records(group) for group in groups], seed=1)
    assert (summary.accuracy, summary.count, summary.truncated, summary.format) == (0.5, 3, 2, 1.0)
    assert {kind: (score.accuracy, score.count) for kind, score in summary.by_kind.items()} == {
        "sum": (0.75, 2),
        "count": (0.0, 1),
    }
    assert summary.by_kind["count"].ci95 == (0.0, 0.0)
    assert summary.ci95[0] < 0.5 < summary.ci95[1]
    assert summary.decided_by == {"exact": 3, "none": 3} and not summary.bad_questions
    assert (summary.length.mean, summary.length.p50, summary.length.max) == (pytest.approx(19 / 3), 5.0, 9.0)
    assert summary.pass_at["2"].accuracy == pytest.approx(2 / 3)


def write_questions(folder: Path) -> tuple[Path, Path]:
    """Writes training shards in which the answer to one question text is mostly 7, and 60 questions of that text."""
    texts = list(digit_samples("train", 1, 0))[0].messages
    samples = [
        Sample(id=f"{n}", source="digits", messages=texts, answer="7" if n % 3 else "8") for n in range(90)
    ]
    write_shards(samples[:30], folder / "train")
    write_shards([replace(s, id=f"test/{s.id}") for s in samples[30:]], folder / "test")
    return folder / "train", folder / "test"


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        (1.0, "the model beats it: +33.3 points"),
        (None, "not better than that"),
        (0.0, "worse than that: -66.7"),
    ],
)
def test_baseline_says_whether_the_model_beats_the_most_frequent_answers(
    accuracy: float | None, verdict: str, tmp_path: Path
) -> None:
    """Responses that are right always, as often as the baseline (on other questions), and never."""
    train, test = write_questions(tmp_path)
    config = EvalConfig(model="", shards=str(test), out="", train_shards=(str(train),))
    prompts = [
        replace(make_prompt(n), ref=ref, answer="7" if n % 3 else "8")
        for n, ref in enumerate(ShardIndex.load(test))
    ]
    ours = [float(n % 3 < 2) if accuracy is None else accuracy for n in range(len(prompts))]
    with VerifyPool(CheckerConfig(workers=1)) as pool:
        found = score_baseline(config, pool, prompts, ours)
        assert score_baseline(replace(config, baseline_samples=0), pool, prompts, ours) is None
    assert found and found.by_text.accuracy == found.by_kind.accuracy == pytest.approx(2 / 3)
    assert verdict in found.sentence and "is right 66.7% of the time" in found.sentence
    assert found.questions_seen == 60 and "30 training samples are 60 of the 60" in describe_seen(found, 60)


def test_interval_equals_that_of_scipy() -> None:
    values = np.random.default_rng(0).random(200) < 0.4
    ours = bootstrap_ci95(values.tolist(), seed=3)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5)
    )
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert ours == bootstrap_ci95(values.tolist(), seed=3)


def test_interval_of_clusters_equals_that_of_scipy() -> None:
    """Of clusters of different sizes the mean is over all values that are drawn."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 6, size=80)
    clusters = np.repeat(np.arange(80), sizes)
    values = (rng.random(80) < 0.4)[clusters].astype(float)
    ours = bootstrap_ci95(values.tolist(), seed=3, clusters=clusters.tolist())
    theirs = stats.bootstrap(
        (np.bincount(clusters, weights=values), sizes),
        lambda sums, counts, axis=-1: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(5),
    )
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    alone = bootstrap_ci95(values.tolist(), seed=3)
    assert ours[1] - ours[0] > 1.3 * (alone[1] - alone[0])


def test_shards_without_questions_are_refused(tiny_hf: Path, tmp_path: Path) -> None:
    write_shards([], tmp_path / "shards")
    with pytest.raises(ValueError, match="holds no questions"):
        evaluate(EvalConfig(model=str(tiny_hf), shards=str(tmp_path / "shards"), out=str(tmp_path)))


def test_shards_without_a_question_that_can_be_asked_are_refused(tiny_hf: Path, tmp_path: Path) -> None:
    write_shards([replace(s, answer=" ") for s in digit_samples("test", 2, 0)], tmp_path / "shards")
    with pytest.raises(
        ValueError, match=r"none of the 2 questions .* the first, digits/test/\S+ no_reference"
    ):
        evaluate(EvalConfig(model=str(tiny_hf), shards=str(tmp_path / "shards"), out=str(tmp_path)))


def test_wrong_training_shards_are_refused_before_any_question_is_asked(
    tiny_hf: Path, tmp_path: Path
) -> None:
    write_shards(list(digit_samples("test", 2, 0)), tmp_path / "shards")
    config = EvalConfig(model=str(tiny_hf), shards=str(tmp_path / "shards"), out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="nowhere"):
        evaluate(replace(config, train_shards=(str(tmp_path / "nowhere"),)))
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_model_folder_is_scored_through_vllm(
    tiny_hf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Questions that cannot be asked, each for another cause, are named and count as wrong; the others are asked."""
    samples = list(digit_samples("test", 20, 0, cell=28))
    bad = bad_questions(samples[0])
    write_shards([*samples[:9], *(sample for sample, _ in bad.values()), *samples[9:]], tmp_path / "shards")
    config = EvalConfig(
        model=str(tiny_hf),
        shards=str(tmp_path / "shards"),
        out=str(tmp_path / "out"),
        limit=18 + len(bad),
        engine=EngineConfig(
            precision="fp32", max_model_len=1_500, max_num_seqs=8, max_images=1, cpu_kv_cache_gib=0.1
        ),
        image=ImageConfig(min_pixels=784),
        sampling=SamplingConfig(n=1, temperature=0.0, max_tokens=12),
    )
    summary = evaluate(config)
    records = list(read_responses(tmp_path / "out" / "responses.jsonl", AskedResponse))
    good = [record for record in records if not record.fault]
    assert [(r.id, r.rollout, r.source, r.kind, r.answer) for r in good] == [
        (s.id, 0, s.source, s.metadata["kind"], s.answer) for s in samples[:18]
    ]
    assert all(1 <= record.response_len <= 12 for record in good)
    assert summary.truncated == sum(record.finish_reason == "length" for record in good)
    refused = {record.id: record for record in records if record.fault}
    assert len(records) == len(good) + len(refused)
    for name, (sample, words) in bad.items():
        record = refused.pop(sample.id)
        assert record.fault.startswith(words) and record.response is None and record.accuracy == 0
        assert f"question bad/{name} cannot be asked and counts as wrong: {words}" in caplog.text
    assert not refused
    assert summary.bad_questions == {"image": 4, "no_reference": 1, "text": 3, "too_long": 1}
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["bad_questions"] == summary.bad_questions
    assert written["accuracy"] == summary.accuracy == np.mean([r.accuracy for r in records])
    assert written["count"] == len(records) == sum(kind["count"] for kind in written["by_kind"].values())
    assert written["ci95"] == list(summary.ci95)


@pytest.mark.heavy
def test_torn_evaluation_goes_on_and_several_engines_answer_as_one(
    tiny_hf: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is the same to the byte however often it was begun, and wherever a response was sampled."""
    write_shards(digit_samples("test", 6, 0, cell=28), tmp_path / "shards")
    whole = EvalConfig(
        model=str(tiny_hf),
        shards=str(tmp_path / "shards"),
        out=str(tmp_path / "whole"),
        subset=4,
        engine=EngineConfig(
            precision="fp32",
            num_engines=2,
            max_model_len=512,
            max_num_seqs=4,
            max_images=1,
            cpu_kv_cache_gib=0.1,
        ),
        image=ImageConfig(min_pixels=784),
        sampling=SamplingConfig(n=3, temperature=1.0, max_tokens=8),
    )
    summary = evaluate(whole)
    wanted = (tmp_path / "whole/responses.jsonl").read_bytes()
    assert len(wanted.splitlines()) == 12 and summary.count == 4 and summary.pass_at.keys() == {"2", "3"}
    assert len({json.loads(line)["response"] for line in wanted.splitlines()}) == 12

    alone = replace(whole.engine, num_engines=1)
    torn = replace(whole, out=str(tmp_path / "torn"), engine=alone)
    evaluate(replace(torn, subset=2, sampling=replace(whole.sampling, n=2)))
    responses = tmp_path / "torn/responses.jsonl"
    responses.write_bytes(responses.read_bytes()[:-30])  # the last of four
    caplog.clear()
    capfd.readouterr()
    evaluate(torn)
    assert "3 records are there already, 9 are missing" in capfd.readouterr().out
    assert "1 lines cannot be read; what they held is asked again" in caplog.text
    assert responses.read_bytes() == wanted
    assert evaluate(torn) == evaluate(whole)  # no engine starts

    with pytest.raises(ValueError, match=r"sampling.temperature was 1.0, is 0.5"):
        evaluate(replace(torn, sampling=replace(whole.sampling, temperature=0.5)))
    with pytest.raises(
        ValueError, match=r"9 responses that are not asked for now, as number [012] to digits"
    ):
        evaluate(replace(torn, subset=1, sampling=replace(whole.sampling, n=3)))
    assert responses.read_bytes() == wanted
    assert (tmp_path / "torn/summary.json").exists()

    # a summary is gone while it would describe fewer responses than there are
    monkeypatch.setattr("rl.evaluation.collect.start_engines", None)
    with pytest.raises(TypeError):
        evaluate(replace(torn, sampling=replace(whole.sampling, n=4)))
    assert not (tmp_path / "torn/summary.json").exists() and responses.read_bytes() == wanted
