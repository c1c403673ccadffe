"""A corpus -> shards: rows through its adapter, what does not fit dropped and counted; or only looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_pipeline.errors import BadSample
from data_pipeline.files import read_json, write_json
from data_pipeline.parts import run_parts
from data_pipeline.shards.index import INDEX
from data_pipeline.shards.writer import finish_shards, write_part
from data_pipeline.sources.adapters import CORPORA, EXPANSIONS
from data_pipeline.sources.config import ImportConfig, RowsConfig
from data_pipeline.sources.readers import RawRow, read_rows, source_files
from data_pipeline.sources.rows import Row
from data_pipeline.types import SYSTEM_PROMPT, Sample

MANIFEST = "import.json"
MIN_ROWS = 1_000
"""Before this many rows of a file a share of bad ones says little; the import stops at the end if it was too large."""


@dataclass(kw_only=True)
class Tally:
    """What became of the rows."""

    rows: int = 0
    samples: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    first: dict[str, str] = field(default_factory=dict)  # reason -> its first case
    scaled: int = 0  # images that max_pixels scaled down

    @property
    def num_dropped(self) -> int:
        return sum(self.dropped.values())

    def drop(self, place: str, error: BadSample) -> None:
        self.dropped[error.reason] = self.dropped.get(error.reason, 0) + 1
        self.first.setdefault(error.reason, f"{place}: {error}")

    def add(self, later: Tally) -> None:
        """Put that of the next part behind this one."""
        self.rows += later.rows
        self.samples += later.samples
        for reason, count in later.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.first = later.first | self.first

    def check(self, most: float, *, at_end: bool = False) -> None:
        """Stop when more rows are bad than `most`, a count from 1 on and a share of the rows below.

        Raises:
            ValueError: there are.
        """
        is_share = 0 < most < 1
        if is_share and self.rows < MIN_ROWS and not at_end:
            return
        if self.num_dropped > (most * self.rows if is_share else most):
            raise ValueError(
                f"{self.num_dropped} of {self.rows} rows are bad, more than max_bad_samples={most:g} "
                f"allows:\n{self.cases()}\nmend the rows, look at them with --check, or raise the limit"
            )

    def cases(self) -> str:
        """A line per reason: how many were dropped, and the first of them."""
        return "\n".join(
            f"  {count} {reason}, the first: {self.first[reason]}"
            for reason, count in sorted(self.dropped.items(), key=lambda item: -item[1])
        )


def read_corpus(
    corpus: str, config: RowsConfig, files: Sequence[Path] = ()
) -> Iterator[tuple[str, Sample | BadSample]]:
    """Each row of `config`'s source and its place there: a sample of the named corpus, or why it is none.

    `files` are those of the source to read, by default all. Rows are numbered in each file.
    """
    images, system = _image_folder(config), SYSTEM_PROMPT if config.system_prompt else ""
    for file, number, fields in _numbered(corpus, config, files):
        place = f"{file}, row {number}" if file else f"row {number}"
        try:
            if isinstance(fields, BadSample):
                raise fields
            row = Row(
                fields=fields,
                corpus=corpus,
                number=number,
                file=file,
                split=config.split,
                images=images,
                system=system,
            )
            found = CORPORA[corpus](row)
        except BadSample as error:
            yield place, error
        else:
            yield place, found


def import_corpus(corpus: str, config: ImportConfig) -> Tally | None:
    """Write the samples of a corpus into shards, a part for each file of the source.

    A killed import goes on behind its finished parts, with the bytes of one that was never killed; where the same
    import is complete already nothing is done and None returned.

    Raises:
        ValueError: the folder holds something else, too many rows are bad, or none is good.
    """
    out, manifest = Path(config.out), Path(config.out) / MANIFEST
    files = source_files(config.rows.path, split=config.rows.split)
    wanted = _fingerprint(corpus, config, files)
    if not _claim(out, wanted):
        return None
    one_part = config.limit or not files  # a limit counts over all files
    parts = (
        [_Part(number=0, files=tuple(files))]
        if one_part
        else [_Part(number=number, files=(file,)) for number, file in enumerate(files)]
    )
    tally = Tally()
    work = partial(_import_part, corpus, config)
    for part in run_parts(work, parts, work=config.work, desc=f"import {corpus}"):
        tally.add(part)
    tally.check(config.max_bad_samples, at_end=True)
    if not tally.samples:
        raise ValueError(f"no row of {config.rows.path} is a sample of {corpus}; look at them with --check")
    write_json(
        manifest, {"import": wanted, **asdict(tally)}
    )  # before the index, which says that all is there
    index = finish_shards(out, len(parts))
    tally.scaled = sum(shard.scaled for shard in index.shards)
    write_json(manifest, {"import": wanted, "digest": index.digest, **asdict(tally)})
    _remove_tallies(out)
    return tally


@dataclass(frozen=True, kw_only=True)
class _Part:
    number: int
    files: tuple[Path, ...]  # none: the source as a whole, through `datasets`


def _claim(out: Path, wanted: dict[str, object]) -> bool:
    """Make `out` this import's folder; False where the import is complete.

    Raises:
        ValueError: it holds shards of something else, whole or not.
    """
    manifest = out / MANIFEST
    is_this = manifest.exists() and read_json(manifest).get("import") == wanted
    if (out / INDEX).exists() and is_this:
        _remove_tallies(out)
        return False
    if not is_this and any(out.glob("*.tar")):
        raise ValueError(f"{out} holds shards of another import; choose another folder, or delete it first")
    if not is_this:
        for record in out.glob("part-*.json"):  # of parts without any sample
            record.unlink()
    out.mkdir(parents=True, exist_ok=True)
    if not is_this:
        write_json(manifest, {"import": wanted})  # before the index: what has one has the other
    return True


def _fingerprint(corpus: str, config: ImportConfig, files: Sequence[Path]) -> dict[str, object]:
    """What decides which samples are written, and into which part."""
    options = asdict(config)
    for name in ("out", "max_bad_samples", "work"):
        del options[name]
    names = "".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files)
    return {"corpus": corpus, **options, "files": hashlib.sha256(names.encode()).hexdigest()[:16]}


def _import_part(corpus: str, config: ImportConfig, part: _Part) -> Tally:
    out = Path(config.out)
    samples = _counted(corpus, config, part)
    if config.work.workers == 1:
        samples = tqdm(samples, desc=f"import {corpus}", unit=" samples", disable=None, delay=1)
    write_part(
        samples,
        out,
        part.number,
        config.writer,
    )
    return Tally(**read_json(_tally_path(out, part.number)))


def _counted(corpus: str, config: ImportConfig, part: _Part) -> Iterator[Sample]:
    """The good samples of a part; what became of its rows is on disk before the part can count as finished."""
    tally = Tally()
    for place, found in read_corpus(corpus, config.rows, part.files):
        tally.rows += 1
        if isinstance(found, BadSample):
            tally.drop(place, found)
            tally.check(config.max_bad_samples)
            continue
        tally.samples += 1
        yield found
        if tally.samples == config.limit:
            break
    write_json(_tally_path(Path(config.out), part.number), asdict(tally))


def _tally_path(out: Path, part: int) -> Path:
    return out / f"tally-{part:06d}.json"


def _remove_tallies(out: Path) -> None:
    for path in out.glob("tally-*"):
        path.unlink()


def _numbered(corpus: str, config: RowsConfig, files: Sequence[Path]) -> Iterator[tuple[str, int, RawRow]]:
    """Rows with their file, as it is called in the source's folder, and their number there."""
    files = files or source_files(config.path, split=config.split)
    if not files:
        raw = read_rows(config.path, split=config.split, subset=config.subset)
        yield from (("", number, row) for number, row in enumerate(_expanded(corpus, raw)))
    for file in files:
        name = "" if file == Path(config.path) else file.relative_to(config.path).as_posix()
        rows = enumerate(_expanded(corpus, read_rows(str(file))))
        yield from ((name, number, row) for number, row in rows)


def _expanded(corpus: str, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    expand = EXPANSIONS.get(corpus)
    for row in rows:
        if expand is None or isinstance(row, BadSample):
            yield row
        else:
            yield from expand(row)


def _image_folder(config: RowsConfig) -> Path | None:
    """The folder asked for, else the source's own; datasets on the hub have none."""
    if config.images and not Path(config.images).is_dir():
        raise ValueError(f"images={config.images} is not a folder; give the one that image paths start from")
    if config.images:
        return Path(config.images)
    source = Path(config.path)
    if source.is_dir():
        return source
    return source.parent if source.is_file() else None
