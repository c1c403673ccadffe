"""The stages of a curation, one function each: what it does to one source, and the rows of the funnel it gives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from data_pipeline.config import WorkConfig
from data_pipeline.curate.config import SHARDS, CurateConfig, SourceConfig
from data_pipeline.curate.funnel import FunnelRow
from data_pipeline.distill.asking import ask_questions
from data_pipeline.distill.config import AskConfig, TeacherConfig
from data_pipeline.distill.responses import (
    ResponseStats,
    pass_rates,
    read_shard_responses,
    responses_digest,
)
from data_pipeline.distill.scoring import with_scores
from data_pipeline.distill.teacher import distilled_samples
from data_pipeline.loader.config import MixConfig
from data_pipeline.loader.mixture import mix
from data_pipeline.select.config import DedupRunConfig
from data_pipeline.select.dedup import deduplicate
from data_pipeline.select.drop_lists import DUPLICATES, duplicates_digest, read_duplicates, without_duplicates
from data_pipeline.select.filters import build_filters, keep
from data_pipeline.select.select import with_verdicts
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.stage import Drop, StageReport, run_stage
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.sources.config import ImportConfig
from data_pipeline.sources.import_corpus import import_corpus
from data_pipeline.types import Sample

log = logging.getLogger(__name__)


def folder(config: CurateConfig, stage: str, source: SourceConfig) -> str:
    """Where a stage's samples or responses of a source lie."""
    if stage == "raw" and source.corpus == SHARDS:
        return source.rows.path
    return f"{config.out}/{stage}/{source.name}"


def check_sources(config: CurateConfig) -> None:
    """Find now what would stop a later stage.

    Raises:
        ValueError: a source has no adapter of that name, or is nowhere.
    """
    for source in config.sources:
        if source.corpus not in (SHARDS, *CORPORA):
            near = get_close_matches(source.corpus, CORPORA, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{source.name}: no corpus {source.corpus!r}; {hint}there are {', '.join(CORPORA)}"
            )
        if source.rows.path.startswith((".", "/")) and not Path(source.rows.path).exists():
            raise ValueError(
                f"{source.name}: {source.rows.path} does not exist; download it there, or give its path"
            )
    if not config.against:
        log.warning("no benchmarks in `against`: contamination is not looked for")


def import_source(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Rows of the corpus -> samples in shards."""
    out, dropped = folder(config, "raw", source), {}
    if source.corpus != SHARDS:
        wanted = ImportConfig(
            rows=source.rows,
            out=out,
            max_bad_samples=source.max_bad_samples,
            writer=config.writer,
            work=config.work,
        )
        dropped = import_corpus(source.corpus, wanted).bad.counts
    index = ShardIndex.load(out)
    return [_row("raw", source, StageReport(index=index, dropped=dropped))]


def find_duplicates(config: CurateConfig) -> None:
    """List the questions of all sources that are there twice, or stand in a benchmark."""
    deduplicate(
        DedupRunConfig(
            shards=tuple(folder(config, "raw", source) for source in config.sources),
            out=f"{config.out}/dedup",
            against=config.against,
            dedup=config.dedup,
            work=config.work,
        )
    )


def standardise(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Leave out the questions that are listed as duplicates, and what the filters of questions drop."""
    settings: dict[str, object] = {"filters": asdict(config.questions)}
    if config.deduplicate:
        settings["duplicates"] = duplicates_digest(*_listed(config, source))
    return [_row("standardised", source, _run(config, source, "raw", "standardised", _standardise, settings))]


def ask_teacher(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Ask the teacher the questions, and check its responses."""
    found = _ask(config, source, "distilled", config.teacher)
    digest = _responses_digest(config, source, "distilled")
    return [
        FunnelRow(stage="distilled", source=source.name, count=found.received, dropped=found.failed),
        FunnelRow(
            stage="verified", source=source.name, count=found.kept, dropped=found.rejected, digest=digest
        ),
    ]


def measure_difficulty(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """Ask the student the questions; how often it is right goes with the samples."""
    _ask(config, source, "difficulty", config.student)
    return []


def select(config: CurateConfig, source: SourceConfig) -> list[FunnelRow]:
    """What the teacher answered right, or the corpus' own answers, as far as the filters let them pass."""
    settings: dict[str, object] = {"filters": asdict(config.responses)}
    if source.responses == "distill":
        settings["per_question"] = config.per_question
        settings["responses"] = _responses_digest(config, source, "distilled")
    if config.difficulty:
        settings["difficulty"] = _responses_digest(config, source, "difficulty")
    return [_row("selected", source, _run(config, source, "standardised", "selected", _select, settings))]


def mix_sources(config: CurateConfig) -> list[FunnelRow]:
    """How many samples of each source make an epoch: `config.samples`, or all where there are no more."""
    sources = tuple(folder(config, "selected", source) for source in config.sources)
    held = sum(int(config.max_epochs * len(ShardIndex.load(source))) for source in sources)
    has_more = config.samples < held
    parts = mix(
        MixConfig(
            shards=sources,
            out=f"{config.out}/mixed",
            samples=config.samples if has_more else 0,
            weights=config.weights if has_more and config.samples else "",
            max_epochs=config.max_epochs,
            seed=config.seed,
        )
    )
    return [
        FunnelRow(stage="mixed", source=part.name, count=part.count, digest=part.digest) for part in parts
    ]


# --- in the workers: what happens to the samples of one shard


def _standardise(
    config: CurateConfig, source: SourceConfig, samples: Iterator[Sample], drop: Drop, part: int
) -> Iterator[Sample]:
    if config.deduplicate:
        samples = without_duplicates(samples, read_duplicates(*_listed(config, source), part), drop)
    return keep(samples, build_filters(config.questions), drop)


def _select(
    config: CurateConfig, source: SourceConfig, samples: Iterator[Sample], drop: Drop, part: int
) -> Iterator[Sample]:
    index = ShardIndex.load(folder(config, "standardised", source))
    if source.responses == "distill":
        responses = read_shard_responses(folder(config, "distilled", source), index, part)
        samples = distilled_samples(samples, responses, config.per_question, drop)
    elif config.responses.correct:  # a teacher's answers were checked when they came
        samples = with_verdicts(samples)
    if config.difficulty:
        rates = pass_rates(read_shard_responses(folder(config, "difficulty", source), index, part))
        scores = {name: {"pass_rate": rate} for name, rate in rates.items()}
        samples = with_scores(samples, scores, ("pass_rate",), drop)
    return keep(samples, build_filters(config.responses), drop)


# --- helpers


def _run(
    config: CurateConfig,
    source: SourceConfig,
    before: str,
    stage: str,
    chain: Callable[[CurateConfig, SourceConfig, Iterator[Sample], Drop, int], Iterator[Sample]],
    settings: dict[str, object],
) -> StageReport:
    return run_stage(
        partial(chain, config, source),
        folder(config, before, source),
        folder(config, stage, source),
        settings=settings,
        writer=config.writer,
        rewrite=True,
        work=config.work,
    )


def _ask(config: CurateConfig, source: SourceConfig, stage: str, server: TeacherConfig) -> ResponseStats:
    """Ask a model the questions of a source."""
    asked = AskConfig(
        shards=folder(config, "standardised", source),
        out=folder(config, stage, source),
        teacher=server,
        # one local run keeps a server busiest
        work=config.work if config.work.executor == "ray" else WorkConfig(),
    )
    total = ResponseStats()
    for found in ask_questions(asked).values():
        total.merge(found)
    return total


def _listed(config: CurateConfig, source: SourceConfig) -> tuple[Path, str]:
    """The list of duplicates, and by which digest it knows the source."""
    raw = ShardIndex.load(folder(config, "raw", source))
    return Path(config.out) / "dedup" / DUPLICATES, raw.digest


def _responses_digest(config: CurateConfig, source: SourceConfig, stage: str) -> str:
    index = ShardIndex.load(folder(config, "standardised", source))
    return responses_digest(folder(config, stage, source), index)


def _row(stage: str, source: SourceConfig, report: StageReport) -> FunnelRow:
    return FunnelRow(
        stage=stage, source=source.name, count=report.kept, dropped=report.dropped, digest=report.index.digest
    )
