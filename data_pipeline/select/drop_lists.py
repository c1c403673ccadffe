"""Lists on disk of the samples that `omr data dedup` found to be duplicates, and how a stage drops them.

duplicates.jsonl              every Duplicate, by corpus, shard and row: for people
drop_lists/CORPUS/000012.json rows of shard 12 to drop; no file where there are none
drop_lists/counts.json        counts, and digests of the lists; written last
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from data_pipeline.files import atomic_writer, read_json, to_json, write_json
from data_pipeline.types import Sample

DUPLICATES, DROP_LISTS, COUNTS = "duplicates.jsonl", "drop_lists", "counts.json"
Kind = Literal["exact", "near", "contamination", "reported"]
"""`reported` is contamination that is not dropped."""


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A sample, and the kept sample (or the benchmark's) that it duplicates."""

    id: str
    source: str
    corpus: str  # digest of its ShardIndex
    shard: int  # its number in the corpus
    row: int  # its number among the readable samples of the shard
    of: str  # id of the kept sample
    kind: Kind
    similarity: float  # cosine of the joined vectors


@dataclass(frozen=True, kw_only=True)
class DropList:
    """Rows of a shard to drop."""

    readable: int = -1  # readable samples of the shard when it was compared; -1: nothing is listed
    rows: Mapping[int, tuple[str, str]]  # row -> id, and "duplicate" or "contamination"


def drop_listed(
    samples: Iterable[Sample], listed: DropList, drop: Callable[[Sample, str], None]
) -> Iterator[Sample]:
    """Yields the readable samples of a shard whose rows are not `listed`; ids may repeat, rows do not.

    Raises:
        ValueError: other samples are readable than when the list was made, so that rows have changed.
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


def _changed(change: str) -> ValueError:
    return ValueError(
        f"a shard has changed since its duplicates were listed: {change}; `omr data validate` names what is broken; "
        "fix it, and run `omr data dedup` again"
    )


def read_drop_list(duplicates: Path, corpus: str, shard: int) -> DropList:
    """Reads the list of a shard.

    Args:
        duplicates: path of duplicates.jsonl, beside which the lists are.
        corpus: digest of the corpus.
    """
    path = _list_path(duplicates, corpus, shard)
    if not path.exists():
        return DropList(rows={})
    found = read_json(path)
    rows = {row: (id, reason) for row, id, reason in found["drops"]}
    return DropList(readable=found["readable"], rows=rows)


def drop_lists_digest(duplicates: Path, corpus: str) -> str:
    """Returns a digest of the lists of the corpus with digest `corpus`, after checking that they are whole.

    Raises:
        ValueError: `duplicates` is not a finished output of `dedup`, was changed, or is about other corpora.
    """
    if not duplicates.is_file():
        raise ValueError(f"duplicates={duplicates} is not a file; `omr data dedup` writes {DUPLICATES}")
    path = duplicates.parent / DROP_LISTS / COUNTS
    counts = read_json(path) if path.exists() else {}
    rows = {row["digest"]: row for row in counts.get("corpora", ())}
    digest = _lists_digest(duplicates, corpus)
    if counts.get(DUPLICATES) != _sha256(duplicates) or rows.get(corpus, {}).get("lists", digest) != digest:
        raise ValueError(
            f"duplicates={duplicates} does not match {path.parent}: one of them was changed, moved alone, or not "
            f"finished; delete {path.parent}, and run `omr data dedup` again"
        )
    if corpus not in rows:
        names = ", ".join(row["folder"] for row in rows.values())
        raise ValueError(
            f"duplicates={duplicates} is about {names}, as they were then, not about the corpus with digest {corpus}; "
            "run `omr data dedup` on the folder that you select from"
        )
    return digest


def write_drop_lists(
    duplicates: Path, found: Sequence[Duplicate], readable: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Writes `found` as lines into the file `duplicates`, and as lists beside it.

    Args:
        readable: by corpus, in their order, the number of readable samples of each shard.

    Returns:
        By corpus the digest of its lists, and by the file's name the digest of the lines.
    """
    order = {corpus: number for number, corpus in enumerate(readable)}
    found = sorted(found, key=lambda each: (order[each.corpus], each.shard, each.row))
    dropped = (each for each in found if each.kind != "reported")
    for (corpus, shard), rows in groupby(dropped, key=lambda each: (each.corpus, each.shard)):
        drops = [(d.row, d.id, "contamination" if d.kind == "contamination" else "duplicate") for d in rows]
        listed = {"readable": readable[corpus][shard], "drops": drops}
        write_json(_list_path(duplicates, corpus, shard), listed)
    with atomic_writer(duplicates) as file:
        file.writelines(to_json(asdict(each), ascii=False).encode() + b"\n" for each in found)
    digests = {corpus: _lists_digest(duplicates, corpus) for corpus in readable}
    return {duplicates.name: _sha256(duplicates), **digests}


def _list_path(duplicates: Path, corpus: str, shard: int) -> Path:
    return duplicates.parent / DROP_LISTS / corpus / f"{shard:06d}.json"


def _lists_digest(duplicates: Path, corpus: str) -> str:
    digest = hashlib.sha256()
    for path in sorted((duplicates.parent / DROP_LISTS / corpus).glob("*.json")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
