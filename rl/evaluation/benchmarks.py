"""Scores a Hugging Face folder on published benchmarks, as one page: all their questions in one queue of engines.

Engines are started once, and none waits for the longest response of one benchmark before the next begins.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.benchmarks.import_benchmark import Questions, find_questions
from data_pipeline.benchmarks.metrics import Metadata
from data_pipeline.files import claim_folder
from megatron_omr.model_config import ModelConfig
from megatron_omr.train.run_folder import list_decisive
from rl.config import EvalConfig, SamplingConfig
from rl.evaluation.answers import RESPONSES, AnswerLog, choose_questions, claim_answers, digest_model
from rl.evaluation.collect import Asked, collect_answers, hold_out
from rl.evaluation.config import BenchmarksConfig
from rl.evaluation.run import check_any, write_summary
from rl.evaluation.scores import BenchmarkScores, RunScores, read_metadata, save_scores, score_benchmark
from rl.evaluation.summary import Records
from rl.prompts.stream import Question, load_prompt_limits, read_prompts
from rl.rewards.registry import load_functions
from rl.rewards.scorer import Scorer

log = logging.getLogger(__name__)

MANIFEST = "benchmarks.json"
"""In the folder of a run: what all its benchmarks have in common."""
OF_ONE = ("out", "model", "root", "path", "subset", "sampling.", "engine.")
"""Settings that benchmarks of a run need not have in common, or that decide nothing: names, and beginnings of names."""
LENGTH_MULTIPLE = 1_024
"""Of an engine's longest prompt and response, in tokens."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A benchmark that is to be asked."""

    source: Questions
    config: EvalConfig
    questions: Sequence[Question]
    metadata: dict[str, Metadata]  # of all questions by id
    room: int  # tokens that every response can have


def evaluate_benchmarks(benchmarks: Sequence[Benchmark], config: BenchmarksConfig) -> RunScores:
    """Asks the questions of the benchmarks; writes `out`/NAME as evaluate() does, and `out`/scores.json at the end.

    Returns:
        The scores of all benchmarks in `out`, those of earlier commands, too.

    Raises:
        ValueError: a benchmark is not found as published, cannot be asked with these settings, or `out` has results of
            another model or other settings, or another process writes there.
    """
    load_functions(config.reward)  # a mistake in a user's own is found at once
    configs = [build_eval_config(each, config) for each in benchmarks]
    is_only, root = len(benchmarks) == 1, Path(config.root)
    sources = [find_questions(each, root, config.path, is_only=is_only) for each in benchmarks]
    planned = [plan_benchmark(*each) for each in zip(sources, configs, strict=True)]
    claim_run(config)
    with hold_out(config.out):
        for each in planned:
            claim_answers(each.config)
        with Scorer(config.reward, Path(config.out)) as scorer, ExitStack() as logs:
            asked = [_open(each, logs) for each in planned]
            collect_answers(build_engines_config([each.config for each in planned]), asked, scorer)
            records = [each.sort() for each in asked]
        scores = {
            each.source.benchmark.name: _score(each, found)
            for each, found in zip(planned, records, strict=True)
        }
        return save_scores(
            RunScores(model=config.model, seed=config.seed, benchmarks=scores), Path(config.out)
        )


def build_eval_config(benchmark: Benchmark, config: BenchmarksConfig) -> EvalConfig:
    """Returns how a benchmark is asked: as published, but for what `config` overrides."""
    published = {"n": benchmark.n, "temperature": benchmark.temperature, "max_tokens": benchmark.max_tokens}
    try:
        sampling = SamplingConfig(**published | config.sampling.given)  # pyright: ignore[reportArgumentType]
        return EvalConfig(
            model=config.model,
            shards=str(Path(config.root) / benchmark.name),
            out=str(Path(config.out) / benchmark.name),
            baseline_samples=0,
            subset=config.subset,
            seed=config.seed,
            engine=config.engine,
            sampling=sampling,
            reward=config.reward,
            image=config.image,
        )
    except ValueError as error:
        raise ValueError(f"{benchmark.name}: {error}") from error


def claim_run(config: BenchmarksConfig) -> None:
    """Makes `config.out` the folder of this model's results, scored alike: with the same judge, or all without one.

    Raises:
        ValueError: it holds others; says which setting differs.
    """
    decisive = {name: value for name, value in list_decisive(config).items() if not name.startswith(OF_ONE)}
    engine = {f"engine.{name}": getattr(config.engine, name) for name in ("precision", "fp32_head")}
    digest = {"model": digest_model(Path(config.model))}
    claim_folder(Path(config.out), MANIFEST, decisive | engine | digest)


def plan_benchmark(source: Questions, config: EvalConfig) -> Planned:
    """Reads the questions; an engine gets room for the longest of them and a response, as far as the model goes.

    Raises:
        ValueError: none of them can be asked; or some cannot be read, see read_metadata.
    """
    context = ModelConfig.from_hf(config.model).max_position_embeddings
    bound = min(config.engine.max_model_len, context)
    limits = load_prompt_limits(replace(config, engine=replace(config.engine, max_model_len=bound)))
    questions = read_prompts(config.shards, limits)
    check_any(config.shards, questions)
    refs = [prompt.ref for prompt, _ in questions]
    metadata = read_metadata(source.benchmark, config.shards, refs)
    longest, wanted = max(prompt.num_tokens for prompt, _ in questions), config.sampling.max_tokens
    room = min(wanted, bound - longest)
    if room < wanted:
        log.warning(
            f"{source.benchmark.name}: of sampling.max_tokens={wanted:,} only {room:,} are left beside the longest "
            f"question, as the model's context has {context:,} tokens and engine.max_model_len is "
            f"{config.engine.max_model_len:,}; its score is marked"
        )
    length = min(bound, -(-(longest + wanted) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    groups = [str(notes.get("group", ref.id)) for ref, notes in zip(refs, metadata, strict=True)]
    chosen = choose_questions(questions, config.subset, config.seed, groups)
    check_any(config.shards, chosen)
    config = replace(config, engine=replace(config.engine, max_model_len=length))
    by_id = {ref.id: notes for ref, notes in zip(refs, metadata, strict=True)}
    return Planned(source=source, config=config, questions=chosen, metadata=by_id, room=room)


def build_engines_config(configs: Sequence[EvalConfig]) -> EvalConfig:
    """Returns the config of engines that can be asked all: the longest, and what is sampled beside what is greedy."""
    longest = max(configs, key=lambda config: config.engine.max_model_len)
    sampled = max(configs, key=lambda config: config.sampling.temperature)
    return replace(longest, sampling=sampled.sampling)


def _open(planned: Planned, logs: ExitStack) -> Asked:
    answers = logs.enter_context(AnswerLog(Path(planned.config.out) / RESPONSES))
    score = planned.source.benchmark.score
    return Asked(config=planned.config, questions=planned.questions, answers=answers, score=score)


def _score(planned: Planned, records: Sequence[Records]) -> BenchmarkScores:
    """Returns the scores of a benchmark; writes its summary.json."""
    return score_benchmark(
        planned.source,
        planned.config,
        records,
        planned.metadata,
        write_summary(planned.config, records, None),
        room=planned.room,
    )
