"""Where rows come from: JSON lines, JSON, Parquet, `datasets` folders, the hub, WebDataset tars.

Everything is read as a stream: memory does not grow with the source. Images stay the bytes they are. A line
that cannot be read becomes a BadSample among the rows, for the reader to count; a file that cannot is an error.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TextIO

from data_pipeline.errors import BadSample

if TYPE_CHECKING:
    from datasets import IterableDataset

RawRow = Mapping[str, object] | BadSample
SUFFIXES = (".parquet", ".jsonl", ".tar", ".json")
"""Of a folder's files those of one kind are read: the first of these that it holds."""
_SAVED = ("dataset_dict.json", "state.json")  # what Dataset.save_to_disk writes
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_GAP = re.compile(r"[\s,]*")
_CHUNK, _MAX_ITEM = 1 << 20, 1 << 28  # characters of JSON; bytes of Parquet
_BATCH = 64  # rows of Parquet


def read_rows(path: str, *, split: str = "", subset: str = "") -> Iterator[RawRow]:
    """Rows of a file, a folder or a dataset on the hub.

    Args:
        split: part of it, such as "train": by file name in a folder; "" is everything, on the hub "train".
        subset: a configuration of a dataset on the hub.

    Raises:
        ValueError: there is no such source, or it cannot be read.
    """
    place = Path(path)
    if files := source_files(path, split=split):
        return _read_files(files)
    if place.is_dir():
        return _read_saved(place, split)
    if _HUB_ID.fullmatch(path):
        return _read_hub(path, split, subset)
    raise ValueError(f"{path} is neither a file nor a folder, nor a dataset's OWNER/NAME on the hub")


def source_files(path: str, *, split: str = "") -> list[Path]:
    """The files that hold the rows, in order; none where `datasets` reads: what it saved, or the hub.

    Raises:
        ValueError: the folder holds no such file, or none of that split.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir() and not any((place / name).is_file() for name in _SAVED):
        return _data_files(place, split)
    return []


def _data_files(folder: Path, split: str) -> list[Path]:
    """The folder's files of one kind, in order of their names; with a split those that are called after it."""
    for suffix in SUFFIXES:
        files = sorted(file for file in folder.rglob(f"*{suffix}") if _is_data(file.relative_to(folder)))
        if files:
            break
    else:
        raise ValueError(f"{folder} holds no {', '.join(SUFFIXES)} file; give the folder that does")
    named = [file for file in files if _is_of(file.relative_to(folder), split)]
    if split and not named:
        some = ", ".join(file.name for file in files[:3])
        raise ValueError(f"no file of {folder} is called after split={split!r}; it holds {some}, ...")
    return named or files


def _is_data(name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return not hidden and not name.name.endswith(("index.json", "infos.json", "info.json", "import.json"))


def _is_of(name: Path, split: str) -> bool:
    return split in name.parts[:-1] or re.split(r"[-_.]", name.name)[0] == split


def _read_files(files: Sequence[Path]) -> Iterator[RawRow]:
    suffix = files[0].suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(files)
    if suffix == ".tar":
        return _read_tars(files)
    if suffix in (".jsonl", ".json", ".ndjson"):
        return (row for file in files for row in _stream(str(file), partial(_read_json, file)))
    raise ValueError(f"{files[0]} is no {', '.join(SUFFIXES)} file; convert it to one")


# --- JSON


def _read_json(path: Path) -> Iterator[RawRow]:
    """One object per line, or one array of objects, whatever the suffix says."""
    # Broken bytes become lone surrogates, which make their row a bad one and not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        if start != "[":
            file.seek(0)
        for value in _array_items(file) if start == "[" else _lines(file):
            is_row = isinstance(value, (Mapping, BadSample))
            yield value if is_row else BadSample("schema", f"wanted an object, saw {str(value)[:60]!r}")


def _lines(file: TextIO) -> Iterator[object]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            yield BadSample("unreadable", f"line {number} of {file.name} is no JSON: {error}")


def _array_items(file: TextIO) -> Iterator[object]:
    """The items behind a "[" one by one, without ever holding the array."""
    decoder, buffer, position = json.JSONDecoder(), "", 0
    while True:
        gap = _GAP.match(buffer, position)
        position = gap.end() if gap else position
        if buffer[position : position + 1] == "]":
            return
        try:
            item, position = decoder.raw_decode(buffer, position)
            yield item
        except (ValueError, RecursionError) as error:
            rest = buffer[position:]
            more = file.read(max(_CHUNK, len(rest)))  # doubles with an item's size: linear in all
            if not more or len(rest) > _MAX_ITEM:
                yield BadSample("unreadable", f"{file.name} holds an item that is no JSON: {error}")
                return
            buffer, position = rest + more, 0


# --- Parquet, a few rows at a time: `datasets` would hold many row groups, and take ten times as long


def _read_parquet(files: Sequence[Path]) -> Iterator[RawRow]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise _missing(error) from error

    def rows(path: Path) -> Iterator[RawRow]:
        with ParquetFile(path, buffer_size=_CHUNK, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                yield from batch.to_pylist()

    for path in files:
        yield from _stream(str(path), partial(rows, path))


# --- through `datasets`: images are not decoded, their bytes are kept


def _read_hub(name: str, split: str, subset: str) -> Iterator[RawRow]:
    load = _datasets().load_dataset
    return _stream(
        name, lambda: _undecoded(load(name, subset or None, split=split or "train", streaming=True))
    )


def _read_saved(folder: Path, split: str) -> Iterator[RawRow]:
    """What Dataset.save_to_disk wrote; of several splits the one asked for, or the only one."""
    saved = _datasets().load_from_disk(str(folder))
    if isinstance(saved, Mapping):
        chosen = split or ("train" if "train" in saved else next(iter(saved)))
        if chosen not in saved or (not split and chosen != "train" and len(saved) > 1):
            raise ValueError(f"split={split!r} must be one of {', '.join(saved)} in {folder}")
        saved = saved[chosen]
    return _stream(str(folder), lambda: _undecoded(saved.to_iterable_dataset()))


def _undecoded(rows: IterableDataset) -> Iterable[RawRow]:
    return rows.decode(False) if rows.features else rows


def _datasets() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise _missing(error) from error
    return datasets


def _missing(error: ImportError) -> ValueError:
    return ValueError(
        f"reading this needs the package `datasets` ({error}); install it: pip install datasets"
    )


def _stream(name: str, rows: Callable[[], Iterable[RawRow]]) -> Iterator[RawRow]:
    """`rows()`, whose errors name the source: Arrow's, the hub's and webdataset's are of these."""
    try:
        yield from rows()
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


# --- WebDataset


def _read_tars(files: Sequence[Path]) -> Iterator[RawRow]:
    """A row per sample: the fields of its json, its other texts by extension, its images in order of names."""
    import webdataset

    def rows(path: Path) -> Iterator[RawRow]:
        _check_end(path)
        url = str(path.resolve())  # absolute: nothing in it is taken for a command
        return map(_record_row, webdataset.WebDataset([url], shardshuffle=False, empty_check=False))

    for path in files:
        yield from _stream(str(path), partial(rows, path))


def _check_end(path: Path) -> None:
    """A tar ends in empty blocks; reading one that was cut between two samples would just end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - tarfile.BLOCKSIZE))
        if file.read().strip(b"\0") or file.tell() < tarfile.BLOCKSIZE:
            raise ValueError("the tar is torn; write or download it again")


def _record_row(record: Mapping[str, bytes]) -> RawRow:
    members = {name: data for name, data in record.items() if not name.startswith("__")}
    try:
        fields = json.loads(members.pop("json", b"{}"))
        texts = {name: members.pop(name).decode() for name in ("txt", "text", "cls") if name in members}
    except (ValueError, RecursionError) as error:
        return BadSample("unreadable", f"{record['__key__']}: {error}")
    if not isinstance(fields, Mapping):
        return BadSample("schema", f"{record['__key__']}.json: wanted an object, saw {str(fields)[:60]!r}")
    named = fields.get("images")
    in_order = sorted(members, key=lambda name: (len(name.partition(".")[0]), name))  # 2.png before 10.png
    order = named if isinstance(named, list) and sorted(map(str, named)) == sorted(members) else in_order
    images = {"images": [members[name] for name in order]} if members else {}
    return {"id": record["__key__"], **texts, **fields, **images}
