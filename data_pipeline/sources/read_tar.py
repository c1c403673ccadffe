"""Reads the records of a WebDataset tar as rows; a record that would lose a part is a bad row.

The tar is walked twice: headers alone first, for what is wrong with each key, so that no row is yielded of which a
part comes later. Memory holds the keys and the members of one record.
"""

from __future__ import annotations

import gzip
import logging
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipeline.errors import BadSample, column_error
from data_pipeline.files import parse_json
from data_pipeline.shards.records import Record, read_records
from data_pipeline.shards.tar_walk import walk
from data_pipeline.sources.media.named_files import Kind
from data_pipeline.sources.media.video_values import SOUND, SUFFIXES
from data_pipeline.sources.text_values import WrittenNumber

log = logging.getLogger(__name__)

TEXTS = ("json", "txt", "text", "cls")
"""Extensions that are no images."""
_GZIP = b"\x1f\x8b"


def read_tar(path: Path) -> Iterator[Mapping[str, object] | BadSample]:
    """Yields for each key the fields of its record, or what is wrong with it; both in the order of the tar.

    Raises:
        ValueError: it is no plain or gzipped tar, or ends too early.
        OSError, EOFError: it cannot be read.
    """
    with _open_tar(path) as (file, size):
        faults: dict[str, str] = {}  # key -> the first thing that is wrong with it
        left_out: Counter[str] = Counter()
        first: dict[str, str] = {}

        def note(kind: str, detail: str, *, place: str = "", sample: str = "") -> None:
            if sample:
                faults.setdefault(sample, f"{place}: {detail}")
            else:
                left_out[detail] += 1
                first.setdefault(detail, place)

        for _ in read_records(walk(file, size), note):
            pass
        for detail, count in left_out.items():
            log.warning(
                "%s: %d of its members left out, the first at %s: %s", path, count, first[detail], detail
            )
        done: set[str] = set()
        for record in read_records(walk(file, size), lambda *_, **__: None):
            if record.key not in faults:
                yield _read_record(file, record)
            elif record.key not in done:
                done.add(record.key)
                yield BadSample("schema", f"{record.key}: {faults[record.key]}")
        for key in faults.keys() - done:  # nothing but links
            yield BadSample("schema", f"{key}: {faults[key]}")


@contextmanager
def _open_tar(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a tar, with its size in bytes; a gzipped one is unpacked into a file that no kill leaves behind."""
    with path.open("rb") as packed:
        if packed.read(len(_GZIP)) != _GZIP:
            yield packed, path.stat().st_size
            return
    with gzip.open(path) as unpacked, tempfile.TemporaryFile() as file:
        try:
            shutil.copyfileobj(unpacked, file, 1 << 20)
        except zlib.error as error:
            raise ValueError(f"the gzip file is damaged ({error}); write or download it again") from error
        yield file, file.tell()


def _read_record(file: BinaryIO, record: Record) -> Mapping[str, object] | BadSample:
    try:
        dotted = [name for name in record.members if "." in name and name.rpartition(".")[2] in TEXTS]
        if dotted:
            raise BadSample(
                "schema",
                f"{record.key}.{dotted[0]}: WebDataset ends a key at the first dot of the file name, here after "
                f"{record.key!r}; rename the files so that their keys hold no dot",
            )
        members = {}
        for name, member in record.members.items():
            file.seek(member.data)
            members[name] = file.read(member.size)
        return _parse_record(record.key, members)
    except BadSample as error:
        return error


def _parse_record(key: str, members: dict[str, bytes]) -> Mapping[str, object]:
    """Returns the fields of the json member, the other texts by extension, videos, and the images in order."""
    try:
        fields = parse_json(members.pop("json", b"{}"), read_float=WrittenNumber)
        texts = {name: members.pop(name).decode("utf-8-sig") for name in TEXTS if name in members}
    except ValueError as error:
        raise BadSample("unreadable", f"{key}: {error}") from error
    if not isinstance(fields, Mapping):
        raise column_error(f"{key}.json", "an object of columns", fields, "write one object per sample")
    for name in texts.keys() & fields.keys():
        if str(fields[name]) != texts[name]:
            raise BadSample(
                "schema", f"{key}: {name} is a member and another text in its json; keep one of both"
            )
    row = {"id": key, **texts, **fields}
    if sounds := [name for name in members if _has_suffix(name, SOUND)]:
        row["audio"] = sounds  # which is refused
        members = {name: data for name, data in members.items() if name not in sounds}
    clips = {name: members.pop(name) for name in list(members) if _has_suffix(name, SUFFIXES)}
    shown: dict[Kind, dict[str, bytes]] = {"video": clips, "image": members}
    for kind, found in shown.items():
        if found:
            row[f"{kind}s"] = [found[name] for name in _order(kind, key, fields, found)]
            row.pop(kind, None)
    return row


def _has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    return f".{name.rpartition('.')[2]}" in suffixes


def _order(kind: Kind, key: str, fields: Mapping[str, object], members: Mapping[str, bytes]) -> list[str]:
    """Returns the extensions of a record's images or videos: as the json names them, else 2.png before 10.png.

    Raises:
        BadSample: the json names another number than there are.
    """
    named = fields.get(f"{kind}s") or fields.get(kind) or []
    names = (
        [str(name).lower() for name in named] if isinstance(named, (list, tuple)) else [str(named).lower()]
    )
    if names and len(names) != len(members):
        there = ", ".join(members)
        detail = f"{key}: the json names {len(names)} {kind}s, the tar holds {len(members)} ({there}); give all of them"
        raise BadSample(kind, detail)
    if sorted(names) == sorted(members):
        return names
    return sorted(members, key=lambda name: (len(name.partition(".")[0]), name))


def load_record(found: Mapping[str, object] | BadSample) -> Mapping[str, object]:
    """Returns a record's fields, or raises what is wrong with it."""
    if isinstance(found, BadSample):
        raise found
    return found
