"""`omr data dedup`: folders of shards -> fingerprints, one file per shard -> what is to be dropped, and counts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from data_pipeline.files import write_json
from data_pipeline.parts import run_parts
from data_pipeline.select.config import DedupConfig, DedupRunConfig
from data_pipeline.select.drop_lists import DUPLICATES, SUMMARY, Duplicate, write_duplicates
from data_pipeline.select.encoders import load_encoders
from data_pipeline.select.fingerprints import fingerprint_shard
from data_pipeline.select.near_duplicates import Corpus, find_duplicates
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import ShardIndex

KINDS = ("exact", "near", "contamination", "reported")


@dataclass(frozen=True, kw_only=True)
class CorpusCount:
    """What became of one corpus."""

    folder: str
    digest: str
    samples: int
    unreadable: int
    dropped: dict[str, int]  # by kind; `reported` are not dropped
    lists: str  # digest of what is to be dropped

    @property
    def kept(self) -> int:
        lost = sum(count for kind, count in self.dropped.items() if kind != "reported")
        return self.samples - self.unreadable - lost


def deduplicate(config: DedupRunConfig) -> tuple[CorpusCount, ...]:
    """Write into `out` what duplicates.py tells of. Nothing that was done before is done again while it holds.

    Raises:
        ValueError: a folder holds no shards or is given twice, or too many samples are unreadable.
    """
    out = Path(config.out)
    for left in out.rglob("*.partial"):  # of a run that was killed
        left.unlink(missing_ok=True)
    indexes = [ShardIndex.load(folder) for folder in (*config.shards, *config.against)]
    _check(config, [index.digest for index in indexes])
    places = [
        (index, number, fingerprint_path(out, index, number, config.dedup))
        for index in indexes
        for number in range(len(index.shards))
    ]
    work = partial(_fingerprint_part, config.dedup)
    parts = [(str(index.folder), number, path) for index, number, path in places]
    run_parts(work, parts, work=config.work, desc="fingerprint")
    bad = {index.digest: list[int]() for index in indexes}  # unreadable samples by shard
    for index, _, path in places:
        bad[index.digest].append(json.loads(path.with_suffix(".json").read_text())["unreadable"])
    if (total := sum(map(sum, bad.values()))) > config.max_bad_samples:
        raise ValueError(
            f"{total} samples cannot be read, more than max_bad_samples={config.max_bad_samples}; "
            "write their shards again, or raise the limit"
        )
    made_of = {
        "inputs": [index.digest for index in indexes[: len(config.shards)]],
        "against": [index.digest for index in indexes[len(config.shards) :]],
        "unreadable": bad,
        "dedup": asdict(config.dedup),
        "shares": config.shares,
    }
    summary = out / SUMMARY
    said = json.loads(summary.read_text()) if summary.exists() else {}
    if said.get("made_of") == made_of:
        named = zip(said["corpora"], config.shards, strict=True)
        return tuple(CorpusCount(**{**row, "folder": folder}) for row, folder in named)
    corpora = [
        Corpus(digest=index.digest, parts=tuple(path for owner, _, path in places if owner is index))
        for index in indexes
    ]
    work = partial(_compare_share, config, corpora)
    shares = range(config.shares)
    found = run_parts(work, shares, work=config.work, desc="compare")
    summary.unlink(missing_ok=True)  # so that lists without it are not whole
    rows, lines = _write(config, indexes, bad, list(chain.from_iterable(found)))
    write_json(summary, {"corpora": [asdict(row) for row in rows], DUPLICATES: lines, "made_of": made_of})
    return rows


def _write(
    config: DedupRunConfig, indexes: Sequence[ShardIndex], bad: dict[str, list[int]], found: list[Duplicate]
) -> tuple[tuple[CorpusCount, ...], str]:
    """Write the lists; returns the counts, and the digest of duplicates.jsonl."""
    named = list(zip(config.shards, indexes, strict=False))
    readable = {
        index.digest: [
            shard.count - lost for shard, lost in zip(index.shards, bad[index.digest], strict=True)
        ]
        for _, index in named
    }
    digests = write_duplicates(Path(config.out) / DUPLICATES, found, readable)
    counts = Counter((each.corpus, each.kind if each.dropped else "reported") for each in found)
    rows = tuple(
        CorpusCount(
            folder=folder,
            digest=index.digest,
            samples=len(index),
            unreadable=sum(bad[index.digest]),
            dropped={kind: counts[index.digest, kind] for kind in KINDS},
            lists=digests[index.digest],
        )
        for folder, index in named
    )
    return rows, digests[DUPLICATES]


def fingerprint_path(out: Path, index: ShardIndex, number: int, config: DedupConfig) -> Path:
    """Where the fingerprints of a shard belong: a name of what is in it and of the encoders."""
    encoders = f"{config.text_encoder} {config.image_encoder}"
    key = hashlib.sha256(f"{index.shards[number].sha256} {encoders}".encode()).hexdigest()[:24]
    return out / "fingerprints" / f"{key}.npz"


def _fingerprint_part(config: DedupConfig, place: tuple[str, int, Path]) -> None:
    """Write the fingerprints of a shard, (its folder, its number, their path), unless they are there, of all of it."""
    folder, number, path = place
    done = path.with_suffix(".json")  # written last
    if done.exists() and not json.loads(done.read_text())["unreadable"]:
        return
    bad: list[str] = []
    encoders = load_encoders(config.text_encoder, config.image_encoder)
    samples = read_shard(ShardIndex.load(folder), number, lambda id, _: bad.append(id))
    fingerprint_shard(samples, encoders).save(path)
    write_json(done, {"unreadable": len(bad), "ids": bad}, shared=True)


def _compare_share(config: DedupRunConfig, corpora: Sequence[Corpus], share: int) -> list[Duplicate]:
    num = len(config.shards)
    return list(
        find_duplicates(corpora[:num], config.dedup, corpora[num:], share=share, num_shares=config.shares)
    )


def table(rows: tuple[CorpusCount, ...]) -> str:
    """Samples and drops by kind, a line per corpus."""
    head = ("corpus", "samples", *KINDS, "unreadable", "kept")
    lines = [
        (row.folder, row.samples, *(row.dropped[kind] for kind in KINDS), row.unreadable, row.kept)
        for row in rows
    ]
    totals = ("all", *(sum(column) for column in list(zip(*lines, strict=True))[1:]))
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in (*lines, totals)]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in (list(head), *cells)
    )


def _check(config: DedupRunConfig, digests: list[str]) -> None:
    folders = (*config.shards, *config.against)
    if not config.shards:
        raise ValueError("inputs is empty; give at least one folder of shards")
    for number, digest in enumerate(digests):
        if digest in digests[:number]:
            twin = folders[digests.index(digest)]
            raise ValueError(f"{folders[number]} holds the same shards as {twin}; give each corpus once")
