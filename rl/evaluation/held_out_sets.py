"""What is asked while RL runs: questions of one's own, and published benchmarks, each with its metric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.benchmarks.metrics import Metadata, QuestionResult
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.shards.index import holds_shards
from rl.config import RLConfig, SamplingConfig
from rl.evaluation.intervals import score_accuracies
from rl.evaluation.run import check_any
from rl.evaluation.scores import read_metadata
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


def load_sets(config: RLConfig) -> list[QuestionSet]:
    """Reads the questions of `held_out.shards`, then those of the benchmarks; questions with a fault are named.

    Raises:
        ValueError: there is no such benchmark, or a set has no question that can be asked; or some have no group, see
            read_metadata.
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
    return QuestionSet(
        prefix=f"held_out/{name}/",
        questions=questions,
        sampling=sampling,
        benchmark=benchmark,
        metadata=read_metadata(benchmark, shards, [prompt.ref for prompt, _ in questions]),
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

    The first is what tables print of a benchmark. The interval is that of the accuracy, over questions.
    """
    benchmark = asked.benchmark
    accuracies = [_find_accuracies(group, benchmark) for group in groups]
    numbers: dict[str, float] = {}
    if benchmark:
        metadata = zip(asked.metadata, accuracies, strict=True)
        results = [QuestionResult(metadata=notes, accuracies=found) for notes, found in metadata]
        numbers = benchmark.metric(results)
    score = score_accuracies([float(np.mean(each or (0.0,))) for each in accuracies], seed)
    numbers |= {"accuracy": score.accuracy, "low": score.ci95[0], "high": score.ci95[1]}
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
