"""Curation on one page: corpora -> questions -> teachers' responses -> the right and wanted ones -> a mixture.

    out/raw/NAME           the corpus as samples in shards
    out/dedup              lists of questions that duplicate others, or a benchmark's
    out/filtered/NAME      the other questions, as far as they pass the filters of questions
    out/difficulty/NAME    a student's responses to them, for pass rates
    out/distilled/NAME     the teachers' responses, each checked
    out/selected/NAME      responses that are right and pass the filters of responses
    out/mixed              the mixture that training reads
    out/funnel.json        counts of each source after each stage

Each stage of each source is done once: a killed curation continues where it stopped, and leaves the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_pipeline.curate.config import CurateConfig, SourceConfig
from data_pipeline.curate.funnel import FUNNEL, Funnel, FunnelRow
from data_pipeline.curate.stages import (
    ask_teachers,
    check_sources,
    dedup_sources,
    filter_questions,
    import_source,
    measure_difficulty,
    mix_sources,
    select_responses,
)


def curate(config: CurateConfig) -> Funnel:
    """Runs all stages; returns the counts that funnel.json holds as well.

    Raises:
        ValueError: a source cannot be read, `config.out` holds another curation, or a teacher does not respond.
    """
    check_sources(config)
    before = Funnel.load(Path(config.out) / FUNNEL)  # a report shows all stages while this runs again
    names = {source.name for source in config.sources}
    funnel = replace(before, rows=tuple(row for row in before.rows if row.source in names))

    def run(stage: Callable[[CurateConfig, SourceConfig], list[FunnelRow]], only: str = "") -> None:
        nonlocal funnel
        for source in config.sources:
            for row in stage(config, source) if only in ("", source.responses) else ():
                funnel = funnel.with_row(row)
        funnel.save(Path(config.out) / FUNNEL)

    run(import_source)
    if config.deduplicate:
        dedup_sources(config)
    run(filter_questions)
    if config.difficulty:
        run(measure_difficulty)
    run(ask_teachers, only="distill")
    run(select_responses)
    for row in mix_sources(config):
        funnel = funnel.with_row(row)
    funnel.save(Path(config.out) / FUNNEL)
    return funnel
