"""Evaluation: the numbers of a summary, its intervals, and one real run through vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import SampleRef
from rl.config import EngineConfig, EvalConfig, SamplingConfig
from rl.evaluate import bootstrap_ci95, evaluate, paired_difference, summarize
from rl.types import Group, Prompt, RewardParts, Rollout


def some_group(number: int, kind: str, accuracies: tuple[float, ...], length: int = 5) -> Group:
    rollout = Rollout(
        token_ids=(1,) * length,
        logprobs=(0.0,) * length,
        text="",
        finish_reason="stop" if length < 9 else "length",
        policy_version=0,
    )
    rewards = [
        RewardParts(total=a, accuracy=a, format=1.0, decided_by="exact" if a else "none") for a in accuracies
    ]
    prompt = Prompt(ref=SampleRef(id=str(number), shard="", offset=0, size=0), answer="", kind=kind)
    return Group(prompt=prompt, rollouts=(rollout,) * len(accuracies), rewards=tuple(rewards))


def test_questions_are_averaged_first_and_kinds_apart() -> None:
    groups = [
        some_group(0, "sum", (1.0, 0.0)),
        some_group(1, "sum", (1.0, 1.0)),
        some_group(2, "count", (0.0, 0.0), 9),
    ]
    summary = summarize(groups, seed=1)
    assert (summary.accuracy, summary.count, summary.truncated, summary.format) == (0.5, 3, 2, 1.0)
    assert {kind: (score.accuracy, score.count) for kind, score in summary.by_kind.items()} == {
        "sum": (0.75, 2),
        "count": (0.0, 1),
    }
    assert summary.by_kind["count"].ci95 == (0.0, 0.0)
    assert summary.ci95[0] < 0.5 < summary.ci95[1]
    assert summary.decided_by == {"exact": 3, "none": 3}
    assert (summary.length.mean, summary.length.p50, summary.length.max) == (pytest.approx(19 / 3), 5.0, 9.0)


def test_the_interval_is_scipys() -> None:
    values = np.random.default_rng(0).random(200) < 0.4
    ours = bootstrap_ci95(values.tolist(), seed=3)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5)
    )
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert ours == bootstrap_ci95(values.tolist(), seed=3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_the_paired_difference_lies_in_its_interval_and_changes_sign_when_turned_round(
    pairs: list[tuple[bool, bool]],
) -> None:
    before = {str(i): float(a) for i, (a, _) in enumerate(pairs)}
    after = {str(i): float(b) for i, (_, b) in reversed(list(enumerate(pairs)))}  # the order does not matter
    gain, (low, high) = paired_difference(before, after)
    loss, (other_low, other_high) = paired_difference(after, before)
    assert gain == pytest.approx(np.mean([b - a for a, b in pairs])) == pytest.approx(-loss)
    assert low - 1e-9 <= gain <= high + 1e-9
    assert (low, high) == pytest.approx((-other_high, -other_low))


def test_pairing_makes_the_interval_narrow() -> None:
    before = {str(i): float(i % 2) for i in range(200)}
    after = before | {str(i): 1.0 for i in range(0, 60, 2)}
    _, (low, high) = paired_difference(before, after)
    intervals = [bootstrap_ci95(list(x.values())) for x in (before, after)]
    assert 0 < low < 0.15 < high and high - low < 0.75 * np.hypot(
        *(top - bottom for bottom, top in intervals)
    )


def test_only_the_same_questions_can_be_compared() -> None:
    with pytest.raises(ValueError, match=r"only on one side: \['c'\]"):
        paired_difference({"a": 1.0, "c": 0.0}, {"a": 1.0})
    with pytest.raises(ValueError, match="and any"):
        paired_difference({}, {})


def test_no_questions_are_an_error(tmp_path: Path) -> None:
    write_shards([], tmp_path / "shards")
    with pytest.raises(ValueError, match="holds no questions"):
        evaluate(EvalConfig(model="unused", shards=str(tmp_path / "shards"), out=str(tmp_path)))


def test_a_model_folder_is_scored_through_vllm(tiny_hf: Path, tmp_path: Path) -> None:
    samples = list(digit_samples("test", 20, 0))
    write_shards(samples, tmp_path / "shards")
    config = EvalConfig(
        model=str(tiny_hf),
        shards=str(tmp_path / "shards"),
        out=str(tmp_path / "out"),
        limit=18,
        engine=EngineConfig(precision="fp32", max_model_len=512, max_num_seqs=8, cpu_kv_cache_gib=0.1),
        sampling=SamplingConfig(n=1, temperature=0.0, max_tokens=12),
    )
    summary = evaluate(config)
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [sample.id for sample in samples[:18]]
    assert [(row["kind"], row["answer"]) for row in rows] == [
        (s.metadata["kind"], s.answer) for s in samples[:18]
    ]
    assert all(1 <= row["length"] <= 12 for row in rows)
    assert summary.truncated == sum(row["finish_reason"] == "length" for row in rows)
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["accuracy"] == summary.accuracy == np.mean([row["accuracy"] for row in rows])
    assert written["count"] == 18 == sum(kind["count"] for kind in written["by_kind"].values())
    assert written["ci95"] == list(summary.ci95) and list(written["by_kind"]) == sorted(
        {r["kind"] for r in rows}
    )
