"""Paired comparison of evaluations on disk: against scipy, by groups of questions, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipeline.benchmarks.metrics import QuestionResult, knowledge_steps, list_units, worst_of_variants
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from rl.evaluation.intervals import bootstrap_ci95
from rl.results.compare import Comparison, compare_evaluations
from rl.results.paired import pair_accuracies, run_mcnemar
from rl.results.stored import is_evaluation, load_evaluations
from tests.helpers.evaluations import make_records, write_evaluation

NAMES = ("before", "after")


def compare(before: Path, after: Path) -> Comparison:
    return compare_evaluations(load_evaluations(before), load_evaluations(after), NAMES, seed=3)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (8, 3), (3, 8), (40, 60), (700, 500)])
def test_mcnemar_is_the_binomial_test_of_scipy(gained: int, lost: int):
    wanted = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert run_mcnemar(gained, lost).p == pytest.approx(wanted, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_paired_difference_lies_in_its_interval_and_is_antisymmetric(
    pairs: list[tuple[bool, bool]],
) -> None:
    before = {str(i): float(a) for i, (a, _) in enumerate(pairs)}
    after = {str(i): float(b) for i, (_, b) in reversed(list(enumerate(pairs)))}  # the order does not matter
    found, back = pair_accuracies(before, after), pair_accuracies(after, before)
    gain, (low, high), loss, (other_low, other_high) = found.value, found.ci95, back.value, back.ci95
    assert gain == pytest.approx(np.mean([b - a for a, b in pairs])) == pytest.approx(-loss)
    assert low - 1e-9 <= gain <= high + 1e-9
    assert (low, high) == pytest.approx((-other_high, -other_low))


def test_pairing_narrows_the_interval() -> None:
    before = {str(i): float(i % 2) for i in range(200)}
    after = before | {str(i): 1.0 for i in range(0, 60, 2)}
    low, high = pair_accuracies(before, after).ci95
    intervals = [bootstrap_ci95(list(x.values())) for x in (before, after)]
    assert 0 < low < 0.15 < high and high - low < 0.75 * np.hypot(
        *(top - bottom for bottom, top in intervals)
    )


def test_runs_of_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"only on one side: \['c'\]"):
        pair_accuracies({"a": 1.0, "c": 0.0}, {"a": 1.0})
    with pytest.raises(ValueError, match="at least one"):
        pair_accuracies({}, {})


def test_difference_is_paired_over_the_questions_that_both_asked(tmp_path: Path):
    rng = np.random.default_rng(1)
    old = {f"q{n}": [float(rng.random() < 0.4)] for n in range(150)}
    new = {name: [1.0] if rng.random() < 0.2 else value for name, value in old.items()}
    old |= {"alone": [1.0], "refused": []}
    new |= {"other": [0.0], "another": [0.0], "refused": [1.0]}
    before = write_evaluation(tmp_path / "a", make_records(old))
    after = write_evaluation(tmp_path / "b", make_records(new, length=30))
    found = compare(before, after).benchmarks["digits"]
    assert (found.questions, found.only_before, found.only_after, found.units) == (151, 1, 2, 151)
    gains = [sum(new[name]) - sum(old[name]) for name in old if name in new]
    assert found.difference.value == pytest.approx(np.mean(gains))
    assert found.difference.value == pytest.approx(found.after.accuracy - found.before.accuracy)
    theirs = stats.bootstrap(
        (gains,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5)
    )
    assert found.difference.ci95 == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert found.mcnemar == run_mcnemar(gains.count(1.0), gains.count(-1.0)) and "refused" in found.gained
    assert (found.tokens_before, found.tokens_after) == (20.0, 30.0)
    assert compare(before, after) == compare(before, after)


def test_several_responses_to_a_question_are_compared_by_their_mean(tmp_path: Path):
    before = write_evaluation(tmp_path / "a", make_records({"q": [1.0, 0.0, 0.0, 0.0], "r": [1.0] * 4}))
    after = write_evaluation(tmp_path / "b", make_records({"q": [1.0, 1.0, 1.0, 0.0], "r": [1.0] * 4}))
    found = compare(before, after).benchmarks["digits"]
    assert found.mcnemar is None and found.gained == ("q",) and found.difference.value == 0.25


def write_variants(folder: Path, groups: int) -> tuple[Path, list[str]]:
    """Writes questions of DynaMath's form into shards: groups of two; returns their ids."""
    samples = [
        replace(sample, id=f"{n // 2}/{n % 2}", source="dynamath", metadata={"group": str(n // 2)})
        for n, sample in enumerate(digit_samples("test", 2 * groups, 0, cell=28))
    ]
    write_shards(samples, folder)
    return folder, [sample.id for sample in samples]


def test_metric_of_groups_is_compared_and_resampled_by_group(tmp_path: Path):
    shards, ids = write_variants(tmp_path / "shards", 20)
    old = {name: [float(number % 2)] for number, name in enumerate(ids)}  # one of each pair is right
    new = {name: [1.0] if number < 20 else old[name] for number, name in enumerate(ids)}
    sides = [
        write_evaluation(tmp_path / name, make_records(each, source="dynamath"), shards=shards)
        for name, each in (("a", old), ("b", new))
    ]
    found = compare(*sides).benchmarks["dynamath"]
    assert (found.metric, found.questions, found.units) == ("worst", 40, 20)
    assert (found.before.accuracy, found.after.accuracy, found.difference.value) == (0.0, 0.5, 0.5)
    assert len(found.gained) == 10 and found.difference.ci95 == pytest.approx((0.3, 0.7), abs=0.06)
    assert found.mcnemar == run_mcnemar(10, 0)

    shards.rename(tmp_path / "gone")
    without = compare(*sides)
    assert without.benchmarks["dynamath"].metric == "accuracy" and "40 of 40 questions" in without.notes[0]
    assert without.benchmarks["dynamath"].mcnemar is None


def test_versions_of_a_problem_are_resampled_together(tmp_path: Path):
    """Five versions that turn together say no more than one: the interval is that of the problems."""
    samples = [
        replace(sample, id=f"{n}", source="mathverse_testmini", metadata={"problem_index": str(n // 5)})
        for n, sample in enumerate(digit_samples("test", 100, 0, cell=28))
    ]
    write_shards(samples, tmp_path / "shards")
    sides = []
    for name, share in (("a", 0), ("b", 8)):
        records = make_records(
            {f"{n}": [float(n // 5 < share)] for n in range(100)}, source="mathverse_testmini"
        )
        sides.append(write_evaluation(tmp_path / name, records, shards=tmp_path / "shards"))
    found = compare(*sides).benchmarks["mathverse_testmini"]
    assert (found.questions, found.units, found.difference.value) == (100, 20, 0.4)
    wanted = bootstrap_ci95([float(n < 8) for n in range(20)], seed=3)
    assert found.difference.ci95 == pytest.approx(wanted, abs=0.02) and found.mcnemar is None
    assert found.after.ci95 == pytest.approx(wanted, abs=0.02)

    (tmp_path / "shards").rename(tmp_path / "gone")
    (note,) = compare(*sides).notes
    assert "mathverse_testmini is resampled by question, not by problem_index" in note


def test_numbers_of_responses_are_named(tmp_path: Path):
    few = write_evaluation(tmp_path / "a", make_records({"q": [1.0] * 4}))
    more = write_evaluation(tmp_path / "b", make_records({"q": [1.0] * 8}))
    assert compare(few, more).benchmarks["digits"].other_settings == ("sampling.n 4 and 8",)


def test_groups_that_turn_are_tested_and_not_their_questions(tmp_path: Path):
    shards, ids = write_variants(tmp_path / "shards", 8)
    old = {name: [0.0] for name in ids}
    new = {name: [float(number < 6)] for number, name in enumerate(ids)}  # three groups
    sides = [
        write_evaluation(tmp_path / name, make_records(each, source="dynamath"), shards=shards)
        for name, each in (("a", old), ("b", new))
    ]
    assert compare(*sides).benchmarks["dynamath"].mcnemar == run_mcnemar(3, 0)


def test_unfinished_evaluations_are_refused(tmp_path: Path):
    folder = write_evaluation(tmp_path / "a", make_records({"q": [1.0]}))
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match="a is unfinished, it has no summary.json: run its `omr eval` again"):
        load_evaluations(folder)


def test_first_number_of_metrics_of_groups_is_the_mean_of_their_units():
    draw = random.Random(4)

    def result(**metadata: str | int) -> QuestionResult:
        return QuestionResult(
            metadata=metadata, accuracies=tuple(float(draw.random() < 0.6) for _ in range(3))
        )

    variants = [result(group=str(n % 30)) for n in range(290)]
    steps = [
        result(group=str(n), step=step, num_steps=2 + n % 2)
        for n in range(40)
        for step in ("1", "2", "3", "multi")[: 2 + n % 2] + ("multi",) * (n % 7 > 0)
    ]
    for metric, results in ((worst_of_variants, variants), (knowledge_steps, steps)):
        numbers, units = metric(results), list_units(results)
        first = next(iter(numbers))
        assert numbers["incomplete_groups"] and len(units) < len(results) / 2
        assert numbers[first] == pytest.approx(np.mean([metric(unit)[first] for unit in units]))


def test_mean_over_benchmarks_weighs_each_equally_and_pairs_them_by_name(tmp_path: Path):
    for side, share in (("a", 0.3), ("b", 0.6)):
        for source, count in (("logicvista", 100), ("mmmu_val", 20)):
            draw = random.Random(source + side)
            records = make_records(
                {f"{n}": [float(draw.random() < share)] for n in range(count)}, source=source
            )
            write_evaluation(tmp_path / side / source, records)
    write_evaluation(tmp_path / "b/more", make_records({"q": [1.0]}, source="charxiv_reasoning"))
    found = compare(tmp_path / "a", tmp_path / "b")
    values = [each.difference.value for each in found.benchmarks.values()]
    assert list(found.benchmarks) == ["logicvista", "mmmu_val"] and found.only_after == ("charxiv_reasoning",)
    assert found.mean and found.mean.value == pytest.approx(np.mean(values))
    halves = [(each.difference.ci95[1] - each.difference.ci95[0]) / 2 for each in found.benchmarks.values()]
    width = (found.mean.ci95[1] - found.mean.ci95[0]) / 2
    assert width == pytest.approx(np.hypot(*halves) / 2, rel=0.1), "benchmarks are independent of each other"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"reward.checker.mode": "released"},
            "scored by different rules: reward.checker.mode strict and released",
        ),
        (
            {"reward.use_judge": True, "reward.judge.model": "j"},
            "reward.judge.model  and j, reward.use_judge",
        ),
    ],
)
def test_other_scoring_is_refused(settings: dict[str, object], words: str, tmp_path: Path):
    records = make_records({"q": [1.0]})
    before = write_evaluation(tmp_path / "a", records)
    with pytest.raises(ValueError, match=words):
        compare(before, write_evaluation(tmp_path / "b", records, settings=settings))


def test_other_questions_and_references_are_refused_and_other_settings_are_said(tmp_path: Path):
    records = make_records({"q": [1.0]})
    before = write_evaluation(tmp_path / "a", records)
    other = write_evaluation(tmp_path / "b", [replace(records[0], id="r")])
    with pytest.raises(ValueError, match="no question in common: q and r"):
        compare(before, other)
    changed = write_evaluation(tmp_path / "c", [replace(records[0], answer="8")])
    with pytest.raises(ValueError, match="the reference of question q is '7' in .*a and '8' in .*c"):
        compare(before, changed)
    more = {"model": "two", "sampling.max_tokens": 32, "reward.checker.workers": 9}
    found = compare(before, write_evaluation(tmp_path / "d", records, settings=more)).benchmarks["digits"]
    assert found.other_settings == ("reward.checker.workers 2 and 9", "sampling.max_tokens 64 and 32")
    with pytest.raises(ValueError, match="is no evaluation: wanted asked.json and responses.jsonl"):
        load_evaluations(tmp_path / "none")


def test_run_that_was_evaluated_is_no_evaluation(tmp_path: Path):
    write_evaluation(tmp_path / "run/eval", make_records({"q": [1.0]}))
    assert is_evaluation(tmp_path / "run") and is_evaluation(tmp_path / "run/eval")
    (tmp_path / "run/metrics.jsonl").touch()
    assert not is_evaluation(tmp_path / "run") and is_evaluation(tmp_path / "run/eval")
