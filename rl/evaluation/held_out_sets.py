"""What is asked while RL runs: questions of one's own, and published benchmarks, each with its metric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.benchmarks.metrics import Metadata, QuestionResult, list_units, mean_accuracy
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.shards.index import holds_shards
from rl.config import RLConfig, SamplingConfig
from rl.evaluation.run import check_any
from rl.evaluation.scores import read_metadata, score_units
from rl.prompts.stream import Question, load_prompt_limits, read_prompts
from rl.types import Group

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionSet:
    """Questions that are asked alike, and what makes numbers of their responses."""

    prefix: str  # of its metrics
    questions: Sequence[Question]
    sampling: SamplingConfig
    benchmark: Benchmark | None = None  # None: questions of one's own
    metadata: Sequence[Metadata] = ()  # of each question of a benchmark

    @property
    def asks_judge(self) -> bool:
        """False for a benchmark that scores responses by itself."""
        return self.benchmark is None or self.benchmark.score is None


def load_sets(config: RLConfig) -> list[QuestionSet]:
    """Reads the questions of `held_out.shards`, then those of the benchmarks; questions with a fault are named.

    Raises:
        ValueError: there is no such benchmark, a set has no question that can be asked, or questions of another corpus;
            or some have no group, see read_metadata.
    """
    own = config.held_out
    sampling = replace(config.sampling, n=own.n, temperature=own.temperature, top_p=own.top_p, stages=())
    sets = [QuestionSet(prefix="held_out_", questions=_read(config, own.shards), sampling=sampling)]
    return [*(sets if own.shards else []), *(_load_benchmark(config, *pair) for pair in own.benchmarks)]


def _load_benchmark(config: RLConfig, name: str, shards: str) -> QuestionSet:
    if name not in BENCHMARKS:
        raise ValueError(f"held_out.benchmarks has {name!r}, and there are {', '.join(BENCHMARKS)}")
    if not holds_shards(shards):
        raise ValueError(
            f"held_out.benchmarks: {shards} holds no shards of {name}; write them with `omr data benchmark {name} "
            f"{shards}`, or name others: --held_out.benchmarks NAME SHARDS ..., and without a name none is asked"
        )
    benchmark, run = BENCHMARKS[name], config.sampling
    if benchmark.temperature not in (0, run.temperature):
        log.warning(
            f"held-out {name} is sampled at sampling.temperature={run.temperature:g}, for which the engines are "
            f"started, and not at {benchmark.temperature:g} as published"
        )
    sampling = SamplingConfig(
        n=benchmark.n,
        temperature=run.temperature if benchmark.temperature else 0.0,
        max_tokens=min(benchmark.max_tokens, run.max_tokens),
    )
    questions = _read(config, shards)
    _check_source(benchmark, shards, questions)
    return QuestionSet(
        prefix=f"held_out/{name}/",
        questions=questions,
        sampling=sampling,
        benchmark=benchmark,
        metadata=read_metadata(benchmark, shards, [prompt.ref for prompt, _ in questions]),
    )


def _check_source(benchmark: Benchmark, shards: str, questions: Sequence[Question]) -> None:
    """Raises ValueError where the questions are of something else; says where they are a part of the benchmark."""
    sources = {prompt.source for prompt, _ in questions if prompt.source}
    if others := sorted(sources - {benchmark.name}):
        raise ValueError(
            f"held_out.benchmarks: {shards} holds questions of {', '.join(others)}, not of {benchmark.name}; write "
            f"these with `omr data benchmark {benchmark.name}` to another folder, and name that"
        )
    if len(questions) != benchmark.count:
        log.warning(
            f"held-out {benchmark.name} asks {len(questions):,} of {benchmark.count:,} published questions, so that "
            "its numbers are not the published ones"
        )


def _read(config: RLConfig, shards: str) -> list[Question]:
    if not shards:
        return []
    questions = read_prompts(shards, load_prompt_limits(config), config.held_out.limit)
    check_any(shards, questions)
    for prompt, fault in questions:
        if fault:
            log.warning(f"held-out question {prompt.ref.id} cannot be asked and counts as wrong: {fault}")
    return [(replace(prompt, shards=shards), fault) for prompt, fault in questions]


def measure(asked: QuestionSet, groups: Sequence[Group], *, seed: int) -> dict[str, float]:
    """Returns the metrics of a set, given the scored responses to each question; without any it counts as wrong.

    The first is what tables print of a benchmark, or the accuracy of other questions. The interval is its own.
    """
    benchmark = asked.benchmark
    notes = asked.metadata or [{}] * len(groups)
    accuracies = [_find_accuracies(group, benchmark) for group in groups]
    results = [QuestionResult(metadata=n, accuracies=a) for n, a in zip(notes, accuracies, strict=True)]
    metric, cluster = (benchmark.metric, benchmark.cluster) if benchmark else (mean_accuracy, "")
    numbers = metric(results)
    if units := list_units(results):  # none where no group is whole
        numbers["low"], numbers["high"] = score_units(metric, units, seed, cluster).ci95
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    numbers |= {
        "len": float(np.mean([len(rollout.token_ids) for rollout in rollouts] or [0.0])),
        "truncated": sum(rollout.finish_reason == "length" for rollout in rollouts) / max(1, len(rollouts)),
        "version": min((rollout.oldest_version for rollout in rollouts), default=-1),
    }
    return {f"{asked.prefix}{name}": value for name, value in numbers.items()}


def _find_accuracies(group: Group, benchmark: Benchmark | None) -> tuple[float, ...]:
    if benchmark and benchmark.score:
        return tuple(benchmark.score(rollout.response, group.prompt.answer) for rollout in group.rollouts)
    return tuple(reward.verdict.accuracy for reward in group.rewards)
