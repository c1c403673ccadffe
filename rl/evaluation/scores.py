"""The numbers of benchmarks as published, with intervals and by category: scores.json of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.benchmarks.import_benchmark import Questions
from data_pipeline.benchmarks.metrics import (
    GROUPED,
    Metadata,
    Metric,
    Numbers,
    QuestionResult,
    first_number,
    list_clusters,
    list_units,
)
from data_pipeline.errors import BadSample
from data_pipeline.files import read_json, write_json
from data_pipeline.shards.format import read_sample
from data_pipeline.types import SampleRef
from rl.config import EvalConfig
from rl.evaluation.intervals import Interval, Score, score_accuracies
from rl.evaluation.summary import EvalSummary, Records

SCORES = "scores.json"


@dataclass(frozen=True, kw_only=True)
class Override:
    """A setting that is not as published."""

    published: float
    used: float


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """How a model did on one benchmark. Scores are between 0 and 1."""

    metric: str  # the first number, which papers print
    value: float
    ci95: Interval | None  # bootstrap over units; None without any
    units: int  # that are resampled: questions, groups of them of which the metric is the mean, or clusters
    questions: int  # that were asked for, bad ones too
    published_questions: int
    dropped: int  # rows of the dataset that the import refused
    is_whole: bool  # all published questions
    n: int  # responses to each question
    numbers: Numbers  # of the metric, the first one too
    by: dict[str, dict[str, Score]]  # the first number by a metadata and its values
    tokens: float  # mean of the responses
    truncated: float  # share of the responses
    format: float  # mean of the responses
    bad_questions: dict[str, int]  # that could not be asked and count as wrong, by reason
    use_judge: bool
    overrides: dict[str, Override]


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """How a model did on several benchmarks."""

    model: str
    seed: int
    benchmarks: dict[str, BenchmarkScores]


def score_benchmark(
    asked: Questions,
    config: EvalConfig,
    records: Sequence[Records],
    metadata: Mapping[str, Metadata],
    summary: EvalSummary,
    *,
    room: int,
) -> BenchmarkScores:
    """Returns the scores of a benchmark, from the records of each question and the metadata of all by id.

    Args:
        room: tokens that every response could have.
    """
    benchmark = asked.benchmark
    results = [read_result(metadata.get(each[0].id, {}), each) for each in records]
    numbers = benchmark.metric(results)
    metric, value = first_number(numbers)
    units = list_units(results)
    num_responses = sum(len(result.accuracies) for result in results)
    return BenchmarkScores(
        metric=metric,
        value=value,
        ci95=score_units(benchmark.metric, units, config.seed, benchmark.cluster).ci95 if units else None,
        units=len({*list_clusters(units, benchmark.cluster)}),
        questions=len(records),
        published_questions=benchmark.count,
        dropped=asked.dropped,
        is_whole=asked.are_all and len(records) + asked.dropped == benchmark.count,
        n=config.sampling.n,
        numbers=numbers,
        by={name: _score_by(name, benchmark, units, config.seed) for name in benchmark.by},
        tokens=summary.length.mean,
        truncated=summary.truncated / max(1, num_responses),
        format=summary.format,
        bad_questions=summary.bad_questions,
        use_judge=config.reward.use_judge,
        overrides=list_overrides(benchmark, config, room),
    )


def list_overrides(benchmark: Benchmark, config: EvalConfig, room: int) -> dict[str, Override]:
    """Returns the settings of sampling that are not as published, by their names.

    sampling.max_tokens is what every response could have, where the context leaves less than was set.
    """
    published = {"n": benchmark.n, "temperature": benchmark.temperature, "top_p": 1.0}
    published["max_tokens"] = benchmark.max_tokens
    used = {name: getattr(config.sampling, name) for name in published} | {"max_tokens": room}
    return {
        f"sampling.{name}": Override(published=value, used=used[name])
        for name, value in published.items()
        if used[name] != value
    }


def save_scores(scores: RunScores, out: Path) -> RunScores:
    """Writes `out`/scores.json; benchmarks of earlier commands stay. Returns all."""
    if (out / SCORES).exists():
        scores = replace(scores, benchmarks=load_scores(out).benchmarks | scores.benchmarks)
    write_json(out / SCORES, asdict(scores))
    return scores


def load_scores(out: Path) -> RunScores:
    """Reads `out`/scores.json."""
    saved: dict[str, Any] = read_json(out / SCORES)
    benchmarks = {name: _load(one) for name, one in saved["benchmarks"].items()}
    return RunScores(model=saved["model"], seed=saved["seed"], benchmarks=benchmarks)


def _load(saved: dict[str, Any]) -> BenchmarkScores:
    by = {
        name: {value: Score(**score | {"ci95": tuple(score["ci95"])}) for value, score in scores.items()}
        for name, scores in saved["by"].items()
    }
    overrides = {name: Override(**values) for name, values in saved["overrides"].items()}
    ci95 = saved["ci95"] and tuple(saved["ci95"])
    return BenchmarkScores(**saved | {"by": by, "overrides": overrides, "ci95": ci95})


def read_metadata(benchmark: Benchmark, shards: str, refs: Sequence[SampleRef]) -> list[Metadata]:
    """Returns the metadata of each sample.

    Raises:
        ValueError: one cannot be read, or lacks what the benchmark groups questions by: the number, its interval or
            the engines' longest prompt would be others.
    """
    found = [_read_metadata(shards, ref) for ref in refs]
    wanted = [
        *(["group"] if benchmark.metric in GROUPED else []),
        *([benchmark.cluster] if benchmark.cluster else []),
    ]
    torn = [
        ref.id
        for ref, notes in zip(refs, found, strict=True)
        if notes is None or any(name not in notes for name in wanted)
    ]
    if torn:
        lacks = f"or have no {' and no '.join(wanted)}, " if wanted else ""
        raise ValueError(
            f"{benchmark.name}: {len(torn):,} of {len(refs):,} samples of {shards} cannot be read {lacks}such as "
            f"{torn[0]}; copy the shards again, or delete them and import them with "
            f"`omr data benchmark {benchmark.name} {shards}`"
        )
    return [notes or {} for notes in found]


def _read_metadata(shards: str, ref: SampleRef) -> Metadata | None:
    try:
        return read_sample(shards, ref).metadata
    except BadSample:
        return None


def read_result(metadata: Metadata, records: Records) -> QuestionResult:
    """Returns how the responses to a question were scored."""
    accuracies = tuple(record.accuracy for record in records if not record.fault)
    return QuestionResult(metadata=metadata, accuracies=accuracies)


def score_units(metric: Metric, units: Sequence[Sequence[QuestionResult]], seed: int, cluster: str) -> Score:
    """Returns the first number of a metric as the mean of its units, with the interval of resampled clusters.

    Args:
        cluster: metadata, see Benchmark.
    """
    values = [first_number(metric(unit))[1] for unit in units]
    return score_accuracies(values, seed, list_clusters(units, cluster))


def _score_by(
    name: str, benchmark: Benchmark, units: Iterable[Sequence[QuestionResult]], seed: int
) -> dict[str, Score]:
    """Returns the first number by the values of a metadata; a group has those of its first question."""
    values = defaultdict[str, list[Sequence[QuestionResult]]](list)
    for unit in units:
        if name in unit[0].metadata:
            values[str(unit[0].metadata[name])].append(unit)
    return {
        value: score_units(benchmark.metric, values[value], seed, benchmark.cluster)
        for value in sorted(values)
    }
