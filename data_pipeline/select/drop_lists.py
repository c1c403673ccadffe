"""What is there twice: what `dedup` finds, on disk, and how it is left out of shards.

duplicates.jsonl              every Duplicate, by corpus, shard and row: for people
lists/CORPUS/000012.json      which rows of shard 12 are to be dropped; no file where there are none
dedup.json                    the counts, and a digest of each corpus' lists; written last
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from data_pipeline.files import atomic_writer
from data_pipeline.types import Sample

DUPLICATES, SUMMARY, LISTS = "duplicates.jsonl", "dedup.json", "lists"
Kind = Literal["exact", "near", "contamination"]


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A sample that is there twice, and the kept one (or the benchmark's) that it duplicates."""

    id: str
    source: str
    corpus: str  # digest of its ShardIndex
    shard: int  # its number in the corpus
    row: int  # its number among the readable samples of the shard
    of: str  # id
    kind: Kind
    similarity: float  # cosine of the joined vectors
    dropped: bool = True  # False: contamination that is only reported


@dataclass(frozen=True, kw_only=True)
class DropList:
    """What is to be dropped of a shard."""

    readable: int = -1  # samples of the shard that could be read when it was compared; -1: it lists nothing
    rows: Mapping[int, tuple[str, str]]  # row -> id, and "duplicate" or "contamination"


def without_duplicates(
    samples: Iterable[Sample], listed: DropList, drop: Callable[[Sample, str], None]
) -> Iterator[Sample]:
    """The readable samples of a shard but those `listed` (read_duplicates), which are told from others by their row.

    Raises:
        ValueError: other samples can be read than when the list was made, so that rows are others.
    """
    count = 0
    for row, sample in enumerate(samples):
        count += 1
        id, reason = listed.rows.get(row, (sample.id, ""))
        if id != sample.id:
            raise _changed(f"row {row} was {id!r}, now it is {sample.id!r}")
        if reason:
            drop(sample, reason)
        else:
            yield sample
    if listed.rows and count != listed.readable:
        raise _changed(f"{listed.readable} samples of it could be read, now {count}")


def _changed(what: str) -> ValueError:
    return ValueError(
        f"a shard is not as it was when its duplicates were listed: {what}; `omr data validate` says what is broken; "
        "mend it, and run `omr data dedup` again"
    )


def read_duplicates(path: Path, corpus: str, shard: int) -> DropList:
    """What is to be dropped of a shard of the corpus with digest `corpus`; `path` is that of duplicates.jsonl."""
    place = _list_path(path.parent, corpus, shard)
    if not place.exists():
        return DropList(rows={})
    found = json.loads(place.read_bytes())
    return DropList(readable=found["readable"], rows={row: (id, why) for row, id, why in found["drops"]})


def duplicates_digest(path: Path, corpus: str) -> str:
    """Identifies what is to be dropped of the corpus with digest `corpus`; checks that its lists can be relied on.

    Raises:
        ValueError: `path` is no duplicates.jsonl as `dedup` left it, or that compared another corpus.
    """
    if not path.is_file():
        raise ValueError(f"duplicates={path} is not a file; give the duplicates.jsonl of `omr data dedup`")
    summary = path.parent / SUMMARY
    said = json.loads(summary.read_bytes()) if summary.exists() else {}
    rows = {row["digest"]: row for row in said.get("corpora", ())}
    digest = _lists_digest(path.parent, corpus)
    if said.get(DUPLICATES) != _sha256(path) or rows.get(corpus, {}).get("lists", digest) != digest:
        raise ValueError(
            f"duplicates={path} and what lies beside it is not as `omr data dedup` leaves it: it was changed, moved "
            f"without {SUMMARY} and {LISTS}/, or not finished; delete {SUMMARY}, and run the command again"
        )
    if corpus not in rows:
        names = ", ".join(row["folder"] for row in rows.values())
        raise ValueError(
            f"duplicates={path} knows {names}, as they were then, but not the corpus with digest {corpus}; run "
            "`omr data dedup` on the folder that you select from"
        )
    return digest


def write_duplicates(
    path: Path, found: Sequence[Duplicate], readable: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Write `found` as lines into `path`, and as lists beside it.

    Args:
        readable: by corpus, in their order, the number of readable samples of each shard.

    Returns:
        What belongs into dedup.json: by corpus the digest of its lists, and by the file's name that of the lines.
    """
    order = {corpus: number for number, corpus in enumerate(readable)}
    found = sorted(found, key=lambda each: (order[each.corpus], each.shard, each.row))
    shutil.rmtree(path.parent / LISTS, ignore_errors=True)
    dropped = (each for each in found if each.dropped)
    for (corpus, shard), rows in groupby(dropped, key=lambda each: (each.corpus, each.shard)):
        drops = [
            (each.row, each.id, "contamination" if each.kind == "contamination" else "duplicate")
            for each in rows
        ]
        data = json.dumps({"readable": readable[corpus][shard], "drops": drops}, ensure_ascii=False).encode()
        with atomic_writer(_list_path(path.parent, corpus, shard)) as file:
            file.write(data)
    with atomic_writer(path) as file:
        file.writelines(json.dumps(asdict(each), ensure_ascii=False).encode() + b"\n" for each in found)
    return {path.name: _sha256(path), **{corpus: _lists_digest(path.parent, corpus) for corpus in readable}}


def _list_path(out: Path, corpus: str, shard: int) -> Path:
    return out / LISTS / corpus / f"{shard:06d}.json"


def _lists_digest(out: Path, corpus: str) -> str:
    digest = hashlib.sha256()
    for place in sorted((out / LISTS / corpus).glob("*.json")):
        digest.update(place.name.encode() + place.read_bytes())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
