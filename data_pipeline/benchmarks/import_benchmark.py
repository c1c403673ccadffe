"""Imports a benchmark into shards, from the published dataset or a downloaded copy, and checks that it is whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.files import read_json
from data_pipeline.shards.index import INDEX
from data_pipeline.sources.config import ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import MANIFEST, REPORT, ImportReport, import_corpus


def import_questions(benchmark: Benchmark, config: ImportConfig, count: int | None = None) -> ImportReport:
    """Writes the questions of a benchmark into shards; an import that is complete is only checked again.

    Args:
        count: questions that there must be, good and bad; None as published, 0 any number. A limit checks nothing.

    Raises:
        ValueError: the rows are not those of the benchmark: columns, values or their number.
    """
    rows = fill_rows(benchmark, config.rows)
    index = Path(config.out) / INDEX
    was_complete = index.exists()
    report = import_corpus(benchmark.corpus, replace(config, rows=rows))
    wanted = benchmark.count if count is None else count
    if wanted and not config.limit and report.rows != wanted:
        if not was_complete:
            index.unlink()  # or the next command would take the shards for the benchmark
        where = " ".join(filter(None, (benchmark.dataset, benchmark.subset, f"split {benchmark.split}")))
        raise ValueError(
            f"{benchmark.name} has {wanted:,} questions ({where}), and {rows.path} gave {report.rows:,}; delete "
            f"{config.out} and give that split, as a file or with --rows.split; or set --count to what is right (both "
            f"of `omr data benchmark {benchmark.name} {config.out}`)"
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


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A benchmark in a folder of shards."""

    benchmark: Benchmark
    shards: str
    rows: int  # of the import, good and bad
    dropped: int  # bad ones, which are not in the shards

    @property
    def are_all(self) -> bool:
        """True where the import read as many rows as are published."""
        return self.rows == self.benchmark.count


def find_questions(benchmark: Benchmark, root: Path, path: str = "", *, is_only: bool = False) -> Questions:
    """Returns the questions in `root`/NAME; imports them first, as a whole, if the folder has none.

    Args:
        path: what they are imported from, see find_download; by default the published dataset on the hub.
        is_only: see find_download.

    Raises:
        ValueError: the folder holds something else; or what was read is not the benchmark as published.
    """
    folder = root / benchmark.name
    if (folder / INDEX).exists():
        found = read_json(folder / MANIFEST)["corpus"] if (folder / MANIFEST).exists() else "other shards"
        if found != benchmark.name:
            raise ValueError(
                f"{folder} holds {found}, not {benchmark.name}; delete it, or name another folder of benchmarks"
            )
        report = ImportReport.load(folder / REPORT)
    else:
        place = str(find_download(benchmark, Path(path), is_only=is_only)) if path else ""
        report = import_questions(benchmark, ImportConfig(rows=RowsConfig(path=place), out=str(folder)))
    return Questions(benchmark=benchmark, shards=str(folder), rows=report.rows, dropped=report.bad.total)


def find_download(benchmark: Benchmark, path: Path, *, is_only: bool) -> Path:
    """Returns where a benchmark lies in a folder of downloads: by its name, or as its dataset is called.

    Args:
        is_only: nothing but this benchmark is wanted, so that `path` itself may be its file or folder.

    Raises:
        ValueError: it is at none of these places.
    """
    names = (benchmark.name, benchmark.dataset, Path(benchmark.dataset).name)
    for place in (*(path / name for name in names), *([path] if is_only else [])):
        if place.exists():
            return place
    raise ValueError(
        f"path={path} has no {benchmark.name}: there is none of {', '.join(names)} in it; download "
        f"{benchmark.dataset} to one of these, or leave path out to read it from the hub"
    )
