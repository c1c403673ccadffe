"""The list of samples that are there twice: what `dedup` finds, as JSON lines, and how it is left out of shards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.types import Sample

Kind = Literal["exact", "near", "contamination"]


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A sample that is there twice, and the kept one (or the benchmark's) that it duplicates."""

    id: str
    source: str
    corpus: str  # digest of its ShardIndex
    shard: int  # its number in the corpus
    of: str  # id
    kind: Kind
    similarity: float  # cosine of the joined vectors
    dropped: bool = True  # False: contamination that is only reported


def without_duplicates(
    samples: Iterable[Sample], listed: Iterable[Duplicate], drop: Callable[[Sample, str], None]
) -> Iterator[Sample]:
    """Samples of a shard but those `listed` (read_duplicates); reasons are "duplicate" and "contamination".

    Samples that share an id are equal: as many of them are left out as were listed.
    """
    reasons: dict[str, list[str]] = {}
    for found in listed:
        reasons.setdefault(found.id, []).append(
            "contamination" if found.kind == "contamination" else "duplicate"
        )
    for sample in samples:
        if left := reasons.get(sample.id):
            drop(sample, left.pop())
        else:
            yield sample


def read_duplicates(path: Path, digest: str) -> dict[int, list[Duplicate]]:
    """What is to be dropped of the corpus `digest`, by shard, from a duplicates.jsonl.

    Raises:
        ValueError: there is no such file, or a line of it is none of ours.
    """
    if not path.is_file():
        raise ValueError(f"duplicates={path} is not a file; give the duplicates.jsonl of `omr data dedup`")
    by_shard: dict[int, list[Duplicate]] = {}
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                found = Duplicate(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}:{number} is no duplicate ({error}); write the file again"
                ) from error
            if found.corpus == digest and found.dropped:
                by_shard.setdefault(found.shard, []).append(found)
    return by_shard


def digest_of(listed: Mapping[int, Sequence[Duplicate]]) -> str:
    """Identifies what is to be dropped of a corpus."""
    digest = hashlib.sha256()
    for part in sorted(listed):
        digest.update(json.dumps([part, *(asdict(found) for found in listed[part])]).encode())
    return digest.hexdigest()[:16]


def write_duplicates(path: Path, duplicates: Iterable[Duplicate]) -> Counter[tuple[str, str]]:
    """Write a line each; the file appears when it is whole. Returns the counts by (corpus, kind) of the dropped."""
    counts: Counter[tuple[str, str]] = Counter()
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        for found in duplicates:
            file.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
            counts[found.corpus, found.kind if found.dropped else "reported"] += 1
    partial.replace(path)
    return counts
