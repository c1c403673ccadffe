"""`omr data select`: shards -> the samples that pass the filters, without duplicates, and the reasons of drops."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

from data_pipeline.distill.scoring import add_pass_rates, read_all_scores
from data_pipeline.select.config import SelectConfig
from data_pipeline.select.drop_lists import drop_listed, drop_lists_digest, read_drop_list
from data_pipeline.select.filters import apply_filters, build_filters, last_response
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.stage import Drop, StageReport, run_stage
from data_pipeline.types import Sample
from data_pipeline.verify.config import CheckerConfig
from data_pipeline.verify.pool import VerifyPool

CHUNK = 256
"""Responses that are checked at once."""


def select(config: SelectConfig) -> StageReport:
    """Writes the selected samples to `out`; a finished selection is left as it is.

    Raises:
        ValueError: as select_shards, or no sample is kept.
    """
    report = select_shards(config)
    if not report.kept:
        raise ValueError(f"no sample of {config.shards} is kept ({report.dropped}); loosen the filters")
    return report


def select_shards(config: SelectConfig, *, rewrite: bool = False) -> StageReport:
    """Selects without an error where nothing is kept; with `rewrite` it replaces a selection of other settings.

    Raises:
        ValueError: `out` holds something else, too much is unreadable, or a filter's value is missing.
    """
    duplicates, corpus = Path(config.duplicates), ShardIndex.load(config.shards).digest
    return run_stage(
        partial(_select_samples, config, corpus),
        config.shards,
        config.out,
        settings={
            "filters": asdict(config.filters),
            "duplicates": drop_lists_digest(duplicates, corpus) if config.duplicates else "",
            "scores": [hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] for path in config.scores],
        },
        writer=config.writer,
        max_bad_samples=config.max_bad_samples,
        rewrite=rewrite,
        work=config.work,
    )


def _select_samples(
    config: SelectConfig, corpus: str, samples: Iterator[Sample], drop: Drop, shard: int
) -> Iterator[Sample]:
    """Yields the selected samples of one shard."""
    if config.duplicates:
        samples = drop_listed(samples, read_drop_list(Path(config.duplicates), corpus, shard), drop)
    if config.scores:
        samples = add_pass_rates(samples, read_all_scores(config.scores), drop)
    if config.filters.correct:
        samples = add_verdicts(samples)
    return apply_filters(samples, build_filters(config.filters), drop)


def add_verdicts(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yields the samples with accuracy and decided_by of their response in their metadata, by the strict rules.

    Samples that were checked before, or hold no reference answer, are unchanged.
    """
    waiting = iter(samples)
    with VerifyPool(CheckerConfig(workers=1)) as pool:
        while chunk := list(islice(waiting, CHUNK)):
            asked = [
                sample for sample in chunk if sample.answer.strip() and "accuracy" not in sample.metadata
            ]
            verdicts = pool.check_many([(last_response(sample), sample.answer) for sample in asked])
            found = {id(sample): verdict for sample, verdict in zip(asked, verdicts, strict=True)}
            for sample in chunk:
                verdict = found.get(id(sample))
                added = {"accuracy": verdict.accuracy, "decided_by": verdict.decided_by} if verdict else {}
                yield replace(sample, metadata={**sample.metadata, **added})
