"""Stages of a curation, a function each: it processes one source and returns its rows of the funnel."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from data_pipeline.config import WorkConfig
from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.curate.funnel import FunnelRow, TeacherRow
from data_pipeline.distill.asking import ask_questions
from data_pipeline.distill.config import AskConfig, DistillConfig, TeacherConfig
from data_pipeline.distill.distill import build_kept
from data_pipeline.distill.responses import (
    ResponseStats,
    add_stats,
    read_shard_responses,
    responses_digest,
)
from data_pipeline.distill.scoring import add_pass_rates, compute_pass_rates
from data_pipeline.distill.teachers import ask_teachers as ask_all
from data_pipeline.distill.teachers import count_excluded
from data_pipeline.loader.config import MixConfig
from data_pipeline.loader.mixture import mix
from data_pipeline.select.config import DedupRunConfig, SelectConfig
from data_pipeline.select.dedup import list_duplicates
from data_pipeline.select.drop_lists import DUPLICATES
from data_pipeline.select.filters import apply_filters, build_filters
from data_pipeline.select.select import add_verdicts, select_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.stage import Drop, run_stage
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.sources.config import ImportConfig
from data_pipeline.sources.import_corpus import import_corpus
from data_pipeline.types import Sample

log = logging.getLogger(__name__)


def check_sources(config: CurateConfig) -> None:
    """Checks before any stage runs that each source has an adapter and exists.

    Raises:
        ValueError: a source has no adapter of that name, or its folder does not exist.
    """
    for source in config.sources:
        if source.corpus not in (SHARDS, *CORPORA):
            near = get_close_matches(source.corpus, CORPORA, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            known = f"{hint}there are {', '.join(CORPORA)}"
            raise ValueError(f"{source.name}: no corpus {source.corpus!r}; {known}")
        if source.rows.path.startswith((".", "/")) and not Path(source.rows.path).exists():
            fix = "download it there, or give its path"
            raise ValueError(f"{source.name}: {source.rows.path} does not exist; {fix}")
    if not config.against:
        log.warning("against names no benchmarks: contamination is not checked")


def import_source(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Writes the rows of the corpus as samples in shards."""
    out, dropped = _folder(config, "raw", source), {}
    if source.corpus != SHARDS:
        wanted = ImportConfig(
            rows=source.rows,
            out=out,
            max_bad_samples=source.max_bad_samples,
            writer=config.writer,
            work=config.work,
        )
        dropped = import_corpus(source.corpus, wanted).bad.counts
    return _rows("raw", source, ShardIndex.load(out), dropped)


def dedup_sources(config: CurateConfig) -> None:
    """Lists the questions of all sources that duplicate others, or a benchmark's."""
    wanted = DedupRunConfig(
        shards=tuple(_folder(config, "raw", source) for source in config.sources),
        out=f"{config.out}/dedup",
        against=config.against,
        dedup=config.dedup,
        work=config.work,
    )
    list_duplicates(wanted)


def filter_questions(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Drops listed duplicates, and questions that do not pass their filters."""
    selected = SelectConfig(
        shards=_folder(config, "raw", source),
        out=_folder(config, "filtered", source),
        duplicates=f"{config.out}/dedup/{DUPLICATES}" if config.deduplicate else "",
        filters=config.questions,
        writer=config.writer,
        work=config.work,
    )
    report = select_shards(selected, rewrite=True)
    return _rows("filtered", source, report.index, report.dropped)


def measure_difficulty(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Asks the student the questions, for their pass rates."""
    asked = AskConfig(
        shards=_folder(config, "filtered", source),
        out=_folder(config, "difficulty", source),
        teacher=config.student,
        work=_asking(config),
    )
    found, student = add_stats(ask_questions(asked).values()), config.student
    name = f"student {student.name or student.server.model}".strip()
    index = ShardIndex.load(asked.shards)
    return [
        FunnelRow(
            stage="scored",
            source=source.name,
            count=sum(len(_pass_rates(config, source, index, number)) for number in range(len(index.shards))),
            dropped=found.failed,
            teachers=(_teacher_row(name, student, found),),
        )
    ]


def ask_teachers(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Asks the teachers the questions that are theirs, and checks their responses."""
    wanted = _distill(config, source)
    rates = partial(_pass_rates, config, source) if config.difficulty else None
    stats = ask_all(wanted, rates)
    by_teacher = {name: add_stats(found.values()) for name, found in stats.items()}
    total, digest = add_stats(by_teacher.values()), _responses_digest(config, source)
    asked = tuple(
        _teacher_row(name, teacher, found)
        for teacher, (name, found) in zip(config.teachers, by_teacher.items(), strict=True)
    )
    return [
        FunnelRow(
            stage="distilled",
            source=source.name,
            count=total.received,
            dropped=total.failed | count_excluded(wanted, rates),
            teachers=asked,
        ),
        FunnelRow(
            stage="verified", source=source.name, count=total.kept, dropped=total.rejected, digest=digest
        ),
    ]


def _teacher_row(name: str, teacher: TeacherConfig, found: ResponseStats) -> TeacherRow:
    return TeacherRow(
        teacher=name,
        questions=found.questions,
        solved=found.solved,
        responses=found.received,
        right=found.right,
        prompt_len=found.prompt_len,
        response_len=found.response_len,
        cost=teacher.cost(found.prompt_len, found.response_len),
        judge_prompt_len=found.judge_prompt_len,
        judge_response_len=found.judge_response_len,
    )


def select_responses(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Selects from the teachers' right responses, or the corpus' own, those that pass the filters."""
    settings: dict[str, object] = {"filters": asdict(config.responses)}
    if source.responses == "distill":
        settings |= {"per_question": config.per_question, "keep": config.keep}
        settings["responses"] = _responses_digest(config, source)
    if config.difficulty:
        questions = ShardIndex.load(_folder(config, "filtered", source))
        settings["difficulty"] = responses_digest([_folder(config, "difficulty", source)], questions)
    report = run_stage(
        partial(_select_samples, config, source),
        _folder(config, "filtered", source),
        _folder(config, "selected", source),
        settings=settings,
        writer=config.writer,
        rewrite=True,
        work=config.work,
    )
    return _rows("selected", source, report.index, report.dropped)


def _select_samples(
    config: CurateConfig, source: SourceConfig, samples: Iterator[Sample], drop: Drop, shard: int
) -> Iterator[Sample]:
    """Yields the selected samples of one shard."""
    if source.responses == "distill":
        samples = build_kept(_distill(config, source), samples, drop, shard)
    elif config.responses.correct:  # a teacher's responses were checked when they came
        samples = add_verdicts(samples)
    if config.difficulty:
        questions = ShardIndex.load(_folder(config, "filtered", source))
        samples = add_pass_rates(samples, _pass_rates(config, source, questions, shard), drop)
    return apply_filters(samples, build_filters(config.responses), drop)


def mix_sources(config: CurateConfig) -> list[FunnelRow]:
    """Mixes the sources into epochs of `config.samples`, or of all samples where there are no more."""
    sources = tuple(_folder(config, "selected", source) for source in config.sources)
    available = sum(int(config.max_epochs * len(ShardIndex.load(source))) for source in sources)
    samples = config.samples if config.samples < available else 0
    wanted = MixConfig(
        shards=sources,
        out=f"{config.out}/mixed",
        samples=samples,
        weights=config.weights if samples else "",
        max_epochs=config.max_epochs,
        seed=config.seed,
    )
    parts = mix(wanted)
    return [
        FunnelRow(stage="mixed", source=part.name, count=part.count, digest=part.digest) for part in parts
    ]


def _folder(config: CurateConfig, stage: str, source: SourceConfig) -> str:
    if stage == "raw" and source.corpus == SHARDS:
        return source.rows.path
    return f"{config.out}/{stage}/{source.name}"


def _rows(stage: str, source: SourceConfig, index: ShardIndex, dropped: dict[str, int]) -> list[FunnelRow]:
    count, digest = len(index), index.digest
    return [FunnelRow(stage=stage, source=source.name, count=count, dropped=dropped, digest=digest)]


def _distill(config: CurateConfig, source: SourceConfig) -> DistillConfig:
    """Returns what the teachers are asked of a source."""
    return DistillConfig(
        shards=_folder(config, "filtered", source),
        out=_folder(config, "distilled", source),
        per_question=config.per_question,
        keep=config.keep,
        teachers=config.teachers,
        assign=config.assign,
        work=_asking(config),
    )


def _asking(config: CurateConfig) -> WorkConfig:
    # on one machine a single process keeps the server busiest
    return config.work if config.work.executor == "ray" else WorkConfig()


def _pass_rates(
    config: CurateConfig, source: SourceConfig, index: ShardIndex, number: int
) -> dict[str, float]:
    """Returns the student's pass rates of the questions of a shard."""
    return compute_pass_rates(read_shard_responses(_folder(config, "difficulty", source), index, number))


def _responses_digest(config: CurateConfig, source: SourceConfig) -> str:
    wanted = _distill(config, source)
    return responses_digest([ask.out for ask in wanted.asks], ShardIndex.load(wanted.shards))
