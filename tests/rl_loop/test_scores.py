"""Scores of benchmarks: the first number is the mean of its units, subsets keep groups, a judge is not mixed in."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.benchmarks.import_benchmark import Questions
from data_pipeline.benchmarks.metrics import QuestionResult, list_units
from data_pipeline.benchmarks.registry import BENCHMARKS
from rl.config import EvalConfig, SamplingConfig
from rl.evaluation.answers import choose_questions
from rl.evaluation.benchmarks import build_engines_config, build_eval_config, claim_run
from rl.evaluation.config import BenchmarksConfig, OverrideConfig
from rl.evaluation.scores import (
    BenchmarkScores,
    Override,
    RunScores,
    load_scores,
    save_scores,
    score_benchmark,
)
from rl.evaluation.summary import summarize
from rl.rewards.config import RewardConfig
from rl.types import AskedResponse
from tests.helpers.groups import make_prompt


def draw_results(name: str, seed: int) -> list[QuestionResult]:
    """Results of questions of a benchmark, some of which could not be asked, in the groups that its metric needs."""
    draw, results = random.Random(seed), []
    for group in range(6):
        steps = ("1", "2", "multi") if name == "wemath_testmini" else ("",) * 10
        for step in steps:
            notes: dict[str, str | int] = {"subject": draw.choice("ab")}
            if name in ("dynamath", "wemath_testmini"):
                notes |= {"group": str(group), "num_steps": 2}
                notes |= {"step": step} if step else {}
            accuracies = tuple(float(draw.random() < 0.8) for _ in range(BENCHMARKS[name].n))
            results.append(QuestionResult(metadata=notes, accuracies=accuracies * (draw.random() < 0.95)))
    return results


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("seed", range(5))
def test_first_number_is_the_mean_of_its_units(name: str, seed: int):
    """So that resampling units gives the interval of the number that papers print."""
    metric, results = BENCHMARKS[name].metric, draw_results(name, seed)
    values = [next(iter(metric(unit).values())) for unit in list_units(results)]
    assert next(iter(metric(results).values())) == pytest.approx(sum(values) / len(values))


def build_scores(config: EvalConfig, rows: int) -> BenchmarkScores:
    """Scores of MathVista questions: two are asked, one right and long; the third cannot be."""
    blank = AskedResponse(id="", source="mathvista_testmini", kind="", answer="")
    records = [
        [replace(blank, id="1", response="r", response_len=30, finish_reason="stop", accuracy=1.0)],
        [replace(blank, id="2", response="r", response_len=10, finish_reason="length", accuracy=0.0)],
        [replace(blank, id="3", fault="image: broken")],
    ]
    metadata = {"1": {"category": "a"}, "2": {"category": "b"}, "3": {"category": "b"}}
    source = Questions(benchmark=BENCHMARKS["mathvista_testmini"], shards="", rows=rows, dropped=0)
    return score_benchmark(source, config, records, metadata, summarize(records, seed=1), room=49_152)


def test_scores_of_a_benchmark(tmp_path: Path):
    config = build_eval_config(BENCHMARKS["mathvista_testmini"], BenchmarksConfig(model="m"))
    found = build_scores(config, rows=3)
    assert (found.metric, found.value, found.units, found.n) == ("accuracy", pytest.approx(1 / 3), 3, 1)
    assert (found.tokens, found.truncated, found.bad_questions) == (20, 0.5, {"image": 1})
    assert {key: (s.accuracy, s.count) for key, s in found.by["category"].items()} == {
        "a": (1, 1),
        "b": (0, 2),
    }
    assert found.ci95 and found.ci95[0] < 1 / 3 < found.ci95[1]
    assert not found.is_whole and not found.overrides

    sampled = replace(config, sampling=SamplingConfig(n=4, temperature=1.0, max_tokens=49_152))
    other = build_scores(sampled, rows=3)
    assert other.overrides == {
        "sampling.n": Override(published=1, used=4),
        "sampling.temperature": Override(published=0, used=1),
    }
    first = save_scores(RunScores(model="m", seed=1, benchmarks={"a": found}), tmp_path)
    both = save_scores(RunScores(model="m", seed=1, benchmarks={"b": other}), tmp_path)
    assert both.benchmarks == {"a": found, "b": other} and first.benchmarks == {"a": found}
    assert load_scores(tmp_path) == both


def test_subsets_draw_whole_groups_and_hold_smaller_ones():
    questions = [(make_prompt(number), None) for number in range(30)]
    groups = [str(number // 10) for number in range(30)]

    def draw(subset: int) -> set[str]:
        return {prompt.ref.id for prompt, _ in choose_questions(questions, subset, 1, groups)}

    assert [len(draw(subset)) for subset in (0, 1, 10, 11, 30, 99)] == [30, 10, 10, 20, 30, 30]
    assert draw(1) < draw(11) < draw(30)


def test_one_engine_is_started_for_all():
    config = BenchmarksConfig(model="m", sampling=OverrideConfig(max_tokens=100))
    greedy, sampled = (build_eval_config(BENCHMARKS[name], config) for name in ("logicvista", "aime24"))
    longer = replace(greedy, engine=replace(greedy.engine, max_model_len=9_216))
    started = build_engines_config([sampled, longer, greedy])
    assert (started.sampling.temperature, started.engine.max_model_len) == (1.0, 131_072)
    assert (greedy.sampling.n, sampled.sampling.n, sampled.sampling.max_tokens) == (1, 8, 100)


def test_scores_with_and_without_a_judge_are_not_mixed(tiny_hf: Path, tmp_path: Path):
    config = BenchmarksConfig(model=str(tiny_hf), out=str(tmp_path / "out"))
    claim_run(config)
    claim_run(replace(config, subset=5, sampling=OverrideConfig(n=2), root="elsewhere"))
    judge = replace(config.reward.judge, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="reward.use_judge was False, is True"):
        claim_run(replace(config, reward=RewardConfig(use_judge=True, judge=judge)))
