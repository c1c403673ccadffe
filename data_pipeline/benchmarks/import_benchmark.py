"""Imports a benchmark into shards, from the published dataset or a downloaded copy, and checks that it is whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.sources.config import ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import ImportReport, import_corpus


def import_questions(benchmark: Benchmark, config: ImportConfig, count: int | None = None) -> ImportReport:
    """Writes the questions of a benchmark into shards; an import that is complete is only checked again.

    Args:
        count: questions that there must be, good and bad; None as published, 0 any number. A limit checks nothing.

    Raises:
        ValueError: the rows are not those of the benchmark: columns, values or their number.
    """
    rows = fill_rows(benchmark, config.rows)
    report = import_corpus(benchmark.corpus, replace(config, rows=rows))
    wanted = benchmark.count if count is None else count
    if wanted and not config.limit and report.rows != wanted:
        where = " ".join(filter(None, (benchmark.dataset, benchmark.subset, f"split {benchmark.split}")))
        raise ValueError(
            f"{benchmark.name} has {wanted:,} questions ({where}), and {rows.path} gave {report.rows:,}; give that "
            f"split, as a file or with --rows.split, and delete {config.out}; or set --count to what is right"
        )
    return report


def fill_rows(benchmark: Benchmark, rows: RowsConfig) -> RowsConfig:
    """Returns the rows to read, with what the benchmark publishes where nothing was given.

    Raises:
        ValueError: there is no published dataset on the hub, and no path was given.
    """
    path = Path(rows.path or benchmark.dataset)
    if benchmark.subset and (path / benchmark.subset).is_dir():
        path /= benchmark.subset
    split = benchmark.split
    if path.is_dir() and benchmark.files is not None:
        split = benchmark.files
    if not rows.path and " " in benchmark.dataset:
        raise ValueError(f"{benchmark.name} is not on the hub ({path}); give its rows with --path")
    is_published = str(path) == benchmark.dataset and not path.exists()
    return replace(
        rows,
        path=str(path),
        split=rows.split or split,
        subset=rows.subset or benchmark.subset,
        revision=rows.revision or (benchmark.revision if is_published else None),
    )
