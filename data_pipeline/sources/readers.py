"""Reads rows from JSON lines, JSON arrays, Parquet, CSV, WebDataset tars, folders that `datasets` saved, and the hub.

Everything is streamed: memory does not grow with the source. Images stay the bytes they are. A reader yields for each
row a function that parses it, so that a bad row raises BadSample where it is counted, and reading continues behind it.
A file that cannot be read is a ValueError.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path

from data_pipeline.errors import BadSample, column_error
from data_pipeline.files import parse_json
from data_pipeline.shards.tar_walk import find_compression
from data_pipeline.sources.read_tar import load_record, read_tar
from data_pipeline.sources.text_values import WrittenNumber

Fields = Mapping[str, object]
"""The columns of a row."""
LoadRow = Callable[[], Fields]
"""Parses one row; raises BadSample."""
SUFFIXES = (".parquet", ".jsonl", ".tar", ".json", ".csv")
_GZIPPED_TARS = (".tar.gz", ".tgz")
"""Of a folder's files those of one kind are read: the first of these that it holds."""
_SAVED = ("dataset_dict.json", "state.json")  # written by Dataset.save_to_disk
_DESCRIPTIONS = ("index.json", "infos.json", "info.json", "import.json", "_report.json")  # of data, not rows
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BOM, _UTF_16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_PARQUET_BUFFER, _PARQUET_ROWS = 1 << 20, 64


def source_files(path: str, *, split: str = "") -> list[Path]:
    """Returns the files that hold the rows, in order; none for what `datasets` reads: saved folders and the hub.

    Args:
        split: in a folder only the files named after it, such as "train"; "" is every file.

    Raises:
        ValueError: there is no such source, or the folder holds no such file.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        is_saved = any((place / name).is_file() for name in _SAVED)
        return [] if is_saved else _data_files(place, split)
    if not _HUB_ID.fullmatch(path):
        raise ValueError(f"{path} is neither a file nor a folder, nor a dataset's OWNER/NAME on the hub")
    return []


def read_file(path: Path) -> Iterator[LoadRow]:
    """Returns the rows of one file.

    Raises:
        ValueError: the file is of another kind, or cannot be read; the latter as late as while iterating.
    """
    suffix = _kind(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix == ".tar":
        return _read_tar(path)
    if suffix in (".jsonl", ".json", ".ndjson"):  # the content says whether it is lines or an array
        return _read_array(path) if _is_array(path) else _read_lines(path)
    if suffix == ".csv":
        return _read_csv(path)
    raise ValueError(f"{path} is not a {', '.join(SUFFIXES)} file; convert it to one")


def read_dataset(
    path: str, *, split: str = "", subset: str = "", revision: str | None = None
) -> Iterator[LoadRow]:
    """Yields the rows of a folder that `datasets` saved, or of the dataset OWNER/NAME on the hub.

    Args:
        split: by default "train", or the only split of a saved folder.
        subset: a configuration of a dataset on the hub.
        revision: its commit or tag; None is the newest.

    Raises:
        ValueError: it cannot be read, or has no such split.
    """
    with _errors_naming(path):
        import datasets

        if Path(path).is_dir():
            saved = datasets.load_from_disk(path)
            chosen = saved[_choose_split([*map(str, saved)], split)] if isinstance(saved, Mapping) else saved
            rows = chosen.to_iterable_dataset()
        else:
            rows = datasets.load_dataset(
                path, subset or None, split=split or "train", revision=revision, streaming=True
            )
        for row in rows.decode(False) if rows.features else rows:  # images stay encoded
            yield partial(_as_fields, row)


def _choose_split(splits: list[str], split: str) -> str:
    chosen = split or (splits[0] if len(splits) == 1 else "train")
    if chosen not in splits:
        raise ValueError(f"split={split!r} must be one of {', '.join(splits)}")
    return chosen


def _kind(path: Path) -> str:
    """Returns the lower-case suffix that says what a file holds; .tar also for a gzipped one."""
    return ".tar" if path.name.lower().endswith(_GZIPPED_TARS) else path.suffix.lower()


def _data_files(folder: Path, split: str) -> list[Path]:
    """Returns the folder's files of one kind, sorted by name; with a split those that are named after it."""
    found = sorted(file for file in folder.rglob("*") if _is_data(file.relative_to(folder)))
    if not found:
        raise ValueError(f"{folder} holds no {', '.join(SUFFIXES)} file; give the folder that does")
    kind = min(map(_kind, found), key=SUFFIXES.index)
    files = [file for file in found if _kind(file) == kind]
    if not split:
        return files
    named = [file for file in files if _is_of_split(file.relative_to(folder), split)]
    if not named:
        some = ", ".join(file.name for file in files[:3])
        raise ValueError(f"no file of {folder} is named after split={split!r}; it holds {some}, ...")
    return named


def _is_data(name: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in name.parts)
    return _kind(name) in SUFFIXES and not is_hidden and not name.name.endswith(_DESCRIPTIONS)


def _is_of_split(name: Path, split: str) -> bool:
    return split in name.parts[:-1] or re.split(r"[-_.]", name.name)[0] == split


@contextmanager
def _errors_naming(source: str | Path) -> Iterator[None]:
    """Turns the errors of a source that cannot be read into ValueErrors that name it."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{source} cannot be read: {error}; install that package with pip") from error
    except (OSError, EOFError, ValueError, csv.Error) as error:  # also Arrow's and the hub's
        raise ValueError(f"{source} cannot be read: {error}") from error


def _is_array(path: Path) -> bool:
    with _errors_naming(path), path.open("rb") as file:
        start = file.read(4096)
        if start.startswith(_UTF_16):
            raise ValueError(f"it is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path.name} > FILE")
        if cause := find_compression(start):
            raise ValueError(cause)
    return start.removeprefix(_BOM).lstrip().startswith(b"[")


def _read_lines(path: Path) -> Iterator[LoadRow]:
    # Broken bytes become lone surrogates, which make their row a bad one and not the file.
    with _errors_naming(path), path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from (partial(_parse_line, line, number) for number, line in enumerate(file, 1) if line.strip())


def _parse_line(line: str, number: int) -> Fields:
    try:
        value = parse_json(line, read_float=WrittenNumber)
    except ValueError as error:
        raise BadSample("unreadable", f"line {number} is not JSON: {error}") from error
    return _as_fields(value)


def _read_array(path: Path) -> Iterator[LoadRow]:
    with _errors_naming(path), path.open("rb") as file:
        import ijson

        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        try:
            yield from (partial(_parse_item, item) for item in ijson.items(file, "item", map_type=_Object))
        except ijson.JSONError as error:
            cause = str(error).partition("\n")[0]
            raise ValueError(f"{cause}; write the JSON array again, or convert it to JSON lines") from error


def _parse_item(item: object) -> Fields:
    try:
        value = _plain(item)
    except (ValueError, RecursionError) as error:
        cause = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise BadSample("unreadable", f"the item cannot be read: {cause}") from error
    return _as_fields(value)


class _Object(dict):
    """An object that ijson fills; it keeps the last name that was there already."""

    repeated: str | None = None

    def __setitem__(self, name: str, value: object) -> None:
        self.repeated = name if name in self else self.repeated
        super().__setitem__(name, value)


def _plain(value: object) -> object:
    """Returns the value with floats in place of ijson's Decimals; raises ValueError where JSON lines do."""
    if isinstance(value, _Object):
        if value.repeated is not None:
            raise ValueError(f"an object has the name {value.repeated!r} twice; keep one of them")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        number = WrittenNumber(str(value))
        if not math.isfinite(number):
            raise ValueError(f"it holds {value}, which is too large a number; write it as a text")
        return number
    return value


def _as_fields(value: object) -> Fields:
    if not isinstance(value, Mapping):
        raise column_error("row", "an object of columns", value, "write one object per row")
    return value


def _read_parquet(path: Path) -> Iterator[LoadRow]:
    """Reads batches; `datasets` holds many row groups in memory and takes ten times as long."""
    with _errors_naming(path):
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False):
                yield from (partial(_as_fields, row) for row in batch.to_pylist())


def _read_csv(path: Path) -> Iterator[LoadRow]:
    """Reads rows below a line of names; every value is a text."""
    with _errors_naming(path), path.open(newline="", encoding="utf-8-sig") as lines:
        for row in csv.DictReader(lines, strict=True):
            yield partial(_as_csv_fields, row)


def _as_csv_fields(row: dict[str | None, str | list[str] | None]) -> Fields:
    if None in row or None in row.values():
        raise column_error(
            "row", "as many values as the first line has names", row, "write the missing commas"
        )
    return {str(name): value for name, value in row.items()}


def _read_tar(path: Path) -> Iterator[LoadRow]:
    with _errors_naming(path):
        yield from (partial(load_record, found) for found in read_tar(path))
