"""Imports a corpus into shards: rows through the corpus's adapter; rows that do not fit are dropped and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_pipeline.encode.turns import check_text, check_turns
from data_pipeline.errors import BadSample, ErrorBudget
from data_pipeline.files import claim_folder, read_json, remove_folder, write_json
from data_pipeline.parts import run_parts
from data_pipeline.shards.index import INDEX
from data_pipeline.shards.writer import finish_shards, write_part
from data_pipeline.sources.adapters import Adapter, Corpus, find_corpus
from data_pipeline.sources.config import FramesConfig, ImportConfig, RowsConfig
from data_pipeline.sources.readers import LoadRow, read_dataset, read_file, source_files
from data_pipeline.sources.rows import Row
from data_pipeline.types import SYSTEM_PROMPT, Sample

MANIFEST = "import.json"
"""In the folder of shards: the settings that decide which samples it holds."""
REPORT = "import_report.json"


@dataclass(kw_only=True)
class ImportReport:
    """The rows that an import read: good and bad ones, and the images that were scaled down."""

    bad: ErrorBudget
    scaled: int = 0

    @property
    def rows(self) -> int:
        return self.bad.seen

    @property
    def samples(self) -> int:
        return self.bad.seen - self.bad.total

    def describe(self, out: str, max_pixels: int) -> str:
        """Returns the counts in words, with the first case of each kind of bad row."""
        lines = [f"{self.rows} rows: {self.samples} samples in {out}, {self.bad.total} dropped"]
        lines += [self.bad.cases()] if self.bad.counts else []
        larger = f"images were larger than writer.max_pixels={max_pixels} and are scaled down"
        lines += [f"{self.scaled} {larger}"] if self.scaled else []
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> ImportReport:
        saved = read_json(path)
        return cls(bad=ErrorBudget(**saved["bad"]), scaled=saved["scaled"])


def read_corpus(
    corpus: str | Corpus, config: RowsConfig, files: Sequence[Path] = ()
) -> Iterator[tuple[str, Callable[[], Sample]]]:
    """Yields for each row its place and a function that returns its sample of the corpus, or raises BadSample.

    Args:
        corpus: a name in CORPORA, or the corpus itself.
        files: those of the source to read; by default all. Rows are numbered in each file.
    """
    found = find_corpus(corpus)
    images, system = _image_folder(config), SYSTEM_PROMPT if config.system_prompt else ""
    blank = Row(
        fields={},
        corpus=found.name,
        number=0,
        split=config.split,
        images=images,
        system=system,
        frames=config.frames,
    )
    for file, rows in _sources(config, files):
        for number, load in enumerate(_split_rows(found, rows)):
            place = f"{file}, row {number}" if file else f"row {number}"
            yield place, partial(_build, found.read, load, replace(blank, file=file, number=number))


def _build(read: Adapter, load: LoadRow, row: Row) -> Sample:
    sample = read(replace(row, fields=load()))
    check_turns(sample.messages, len(sample.images), len(sample.videos))
    for text in (sample.answer, sample.id, *map(str, sample.metadata.values())):
        check_text(text)
    return sample


def import_corpus(corpus: str | Corpus, config: ImportConfig) -> ImportReport:
    """Writes the samples of a corpus into shards, a part for each file of the source.

    A killed import continues after its finished parts, and leaves the bytes of one that was never killed; a complete
    one is not repeated.

    Args:
        corpus: a name in CORPORA, or the corpus itself.

    Raises:
        ValueError: the folder holds something else, too many rows are bad, or none is good.
    """
    out, corpus = Path(config.out), find_corpus(corpus)
    files = source_files(config.rows.path, split=config.rows.split)
    claim_folder(out, MANIFEST, _settings(corpus.name, config, files))
    if not (out / INDEX).exists():
        # a limit counts over all files; without files the source is read through `datasets`, as a whole
        parts = [tuple(files)] if config.limit or not files else [(file,) for file in files]
        _import_parts(corpus, config, parts)
    for path in out.glob("import_report-*.json"):
        path.unlink()
    return ImportReport.load(out / REPORT)


def _settings(corpus: str, config: ImportConfig, files: Sequence[Path]) -> dict[str, object]:
    """Returns the settings that decide which samples are written, and into which part."""
    names = "".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files)
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    own = {"corpus": corpus, "limit": config.limit, "files": digest}
    rows = asdict(config.rows)
    if config.rows.frames == FramesConfig():
        del rows["frames"]  # which folders of earlier versions do not name
    return own | rows | asdict(config.writer)


def _import_parts(corpus: Corpus, config: ImportConfig, parts: Sequence[tuple[Path, ...]]) -> None:
    out, total = Path(config.out), ImportReport(bad=_budget(config))
    work = partial(_import_part, corpus, config)
    for report in run_parts(work, list(enumerate(parts)), work=config.work, desc=f"import {corpus.name}"):
        total.bad.merge(report.bad)
        total.scaled += report.scaled
    total.bad.check(at_end=True)
    if not total.samples:
        remove_folder(out)
        hint = f"look at them with --check\n{total.bad.cases()}"
        raise ValueError(f"no row of {config.rows.path} is a sample of {corpus.name}; {hint}")
    total.save(out / REPORT)  # before the index, which says that the folder is complete
    finish_shards(out, len(parts))


def _import_part(corpus: Corpus, config: ImportConfig, part: tuple[int, tuple[Path, ...]]) -> ImportReport:
    number, files = part
    counts = Path(config.out) / f"import_report-{number:06d}.json"
    samples = _count_rows(corpus, config, files, counts)
    if config.work.workers == 1:
        samples = tqdm(samples, desc=f"import {corpus.name}", unit=" samples", disable=None, delay=1)
    shards = write_part(samples, config.out, number, config.writer)
    report = ImportReport.load(counts)  # written by an earlier process, if that finished the part
    report.scaled = sum(shard.scaled for shard in shards)
    return report


def _count_rows(
    corpus: Corpus, config: ImportConfig, files: Sequence[Path], counts: Path
) -> Iterator[Sample]:
    """Yields the samples of a part; saves the counts of its rows before the part can count as finished."""
    report = ImportReport(bad=_budget(config))
    for place, build in read_corpus(corpus, config.rows, files):
        report.bad.seen += 1
        try:
            sample = build()
        except BadSample as error:
            report.bad.add(place, error)
            continue
        yield sample
        if report.samples == config.limit:
            break
    report.save(counts)


def _budget(config: ImportConfig) -> ErrorBudget:
    fix = "fix the rows, look at them with --check, or raise the limit"
    return ErrorBudget(limit=config.max_bad_samples, option="max_bad_samples", fix=fix, records="rows")


def _sources(config: RowsConfig, files: Sequence[Path]) -> Iterator[tuple[str, Iterator[LoadRow]]]:
    """Yields the rows of each file with its name relative to the source's folder, "" for a source of one file."""
    files = files or source_files(config.path, split=config.split)
    if not files:
        yield (
            "",
            read_dataset(config.path, split=config.split, subset=config.subset, revision=config.revision),
        )
    for file in files:
        name = "" if file == Path(config.path) else file.relative_to(config.path).as_posix()
        yield name, read_file(file)


def _split_rows(corpus: Corpus, rows: Iterator[LoadRow]) -> Iterator[LoadRow]:
    """Yields the rows; of a corpus whose published rows hold several questions each, a row for each question."""
    for load in rows:
        try:
            parts = [partial(dict, part) for part in corpus.split(load())] if corpus.split else [load]
        except BadSample:
            parts = [load]  # raises again where it is counted
        yield from parts


def _image_folder(config: RowsConfig) -> Path | None:
    """Returns the folder of rows.images, else the source's own; datasets on the hub have none."""
    source = Path(config.images or config.path)
    if config.images and not source.is_dir():
        raise ValueError(f"rows.images={config.images} is not a folder; give the one that paths start from")
    if source.is_dir():
        return source
    return source.parent if source.is_file() else None
