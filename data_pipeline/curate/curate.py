"""Curation, as one page: corpora -> questions -> answers of a teacher -> what is right and wanted -> a mixture.

    out/raw/NAME           the corpus as samples in shards
    out/dedup              which questions are there twice, or stand in a benchmark
    out/standardised/NAME  the questions that are left
    out/distilled/NAME     a teacher's answers to them, each checked
    out/difficulty/NAME    a student's, for pass rates
    out/selected/NAME      what is right and passes the filters
    out/mixed              the mixture that training reads
    out/funnel.json        what each stage left of each source

Each stage of each source is done once: a killed curation continues where it stopped, and leaves the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_pipeline.curate.config import CurateConfig, SourceConfig
from data_pipeline.curate.funnel import FUNNEL, Funnel, FunnelRow
from data_pipeline.curate.stages import (
    ask_teacher,
    check_sources,
    find_duplicates,
    import_source,
    measure_difficulty,
    mix_sources,
    select,
    standardise,
)


def curate(config: CurateConfig) -> Funnel:
    """All stages; returns what each left of each source, which funnel.json holds as well.

    Raises:
        ValueError: a source cannot be read, `config.out` holds another curation, or the teacher does not answer.
    """
    check_sources(config)
    before = Funnel.load(Path(config.out) / FUNNEL)  # so that a report has all stages while this goes on
    names = {source.name for source in config.sources}
    funnel = replace(before, rows=tuple(row for row in before.rows if row.source in names))

    def stage(work: Callable[[CurateConfig, SourceConfig], list[FunnelRow]], only: str = "") -> None:
        nonlocal funnel
        for source in config.sources:
            for row in work(config, source) if only in ("", source.responses) else ():
                funnel = funnel.with_row(row)
        funnel.save(Path(config.out) / FUNNEL)

    stage(import_source)
    if config.deduplicate:
        find_duplicates(config)
    stage(standardise)
    stage(ask_teacher, only="distill")
    if config.difficulty:
        stage(measure_difficulty)
    stage(select)
    for row in mix_sources(config):
        funnel = funnel.with_row(row)
    funnel.save(Path(config.out) / FUNNEL)
    return funnel
