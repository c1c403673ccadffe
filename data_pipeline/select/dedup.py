"""`omr data dedup`: folders of shards -> fingerprints, a file per shard -> lists of duplicates, and counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import get_args

from data_pipeline.errors import BadSample, ErrorBudget
from data_pipeline.files import PARTIAL, claim_folder, read_json, write_json
from data_pipeline.parts import run_parts
from data_pipeline.select.config import DedupRunConfig
from data_pipeline.select.drop_lists import COUNTS, DROP_LISTS, DUPLICATES, Duplicate, Kind, write_drop_lists
from data_pipeline.select.fingerprints import fingerprint_samples
from data_pipeline.select.near_duplicates import Corpus, find_duplicates
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import ShardIndex
from data_pipeline.tables import text_table

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class CorpusCounts:
    """Counts of one corpus."""

    folder: str
    digest: str
    samples: int
    unreadable: int
    dropped: dict[str, int]  # by kind; `reported` are not dropped
    lists: str  # digest of its drop lists

    @property
    def kept(self) -> int:
        dropped = sum(count for kind, count in self.dropped.items() if kind != "reported")
        return self.samples - self.unreadable - dropped


def list_duplicates(config: DedupRunConfig) -> tuple[CorpusCounts, ...]:
    """Writes the lists that drop_lists.py describes; what is done already, of the same data, is not done again.

    Raises:
        ValueError: a folder holds no shards or is given twice, or too many samples are unreadable.
    """
    out, num = Path(config.out), len(config.shards)
    indexes = _load_indexes(config)
    corpora = [
        Corpus(digest=index.digest, fingerprints=_fingerprint_paths(config, index)) for index in indexes
    ]
    shards = [
        (str(index.folder), number, path)
        for index, corpus in zip(indexes, corpora, strict=True)
        for number, path in enumerate(corpus.fingerprints)
    ]
    fn = partial(_fingerprint_shard, config.dedup.text_encoder)
    run_parts(fn, shards, work=config.work, desc="fingerprint")
    for left in (out / "fingerprints").glob(f"*{PARTIAL}"):  # by workers that were killed
        left.unlink()
    readable = _count_readable(config, indexes, corpora)
    settings = {
        "shards": [corpus.digest for corpus in corpora[:num]],
        "against": [corpus.digest for corpus in corpora[num:]],
        "readable": readable,
        "dedup": asdict(config.dedup),
        "shares": config.shares,
    }
    claim_folder(out / DROP_LISTS, "settings.json", settings, replace=True)
    counts = out / DROP_LISTS / COUNTS
    if not counts.exists():
        fn = partial(_compare_share, config, corpora)
        found = list(
            chain.from_iterable(run_parts(fn, range(config.shares), work=config.work, desc="compare"))
        )
        _write_lists(config, indexes[:num], found, readable)
    rows = zip(read_json(counts)["corpora"], config.shards, strict=True)
    return tuple(CorpusCounts(**{**row, "folder": folder}) for row, folder in rows)  # folders may have moved


def _load_indexes(config: DedupRunConfig) -> list[ShardIndex]:
    folders = (*config.shards, *config.against)
    if not config.shards:
        raise ValueError("shards is empty; give at least one folder of shards")
    indexes = [ShardIndex.load(folder) for folder in folders]
    first: dict[str, str] = {}
    for folder, index in zip(folders, indexes, strict=True):
        if index.digest in first:
            raise ValueError(
                f"{folder} holds the same shards as {first[index.digest]}; give each corpus once"
            )
        first[index.digest] = folder
    return indexes


def _fingerprint_paths(config: DedupRunConfig, index: ShardIndex) -> tuple[Path, ...]:
    """Returns a path per shard, named by its data and the encoder: fingerprints are used again by other runs."""
    keys = (f"{shard.sha256} {config.dedup.text_encoder}" for shard in index.shards)
    names = (hashlib.sha256(key.encode()).hexdigest()[:24] for key in keys)
    return tuple(Path(config.out) / "fingerprints" / f"{name}.npz" for name in names)


def _fingerprint_shard(text_encoder: str, shard: tuple[str, int, Path]) -> None:
    """Writes the fingerprints of a shard (folder, number, path), unless they exist and include all of its samples."""
    folder, number, path = shard
    record = path.with_suffix(".json")  # written last
    if record.exists() and not read_json(record):
        return
    bad: list[tuple[str, str, str]] = []

    def add_bad(id: str, error: BadSample) -> None:
        bad.append((error.reason, id, str(error)))

    samples = read_shard(ShardIndex.load(folder), number, add_bad)
    fingerprint_samples(samples, text_encoder).save(path)
    write_json(record, bad, shared=True)


def _count_readable(
    config: DedupRunConfig, indexes: Sequence[ShardIndex], corpora: Sequence[Corpus]
) -> dict[str, list[int]]:
    """Returns by corpus how many samples of each shard could be read.

    Raises:
        ValueError: more than max_bad_samples could not.
    """
    budget = ErrorBudget(
        limit=config.max_bad_samples,
        option="max_bad_samples",
        fix="`omr data validate` names what is broken; write these shards again, or raise the limit",
    )
    readable: dict[str, list[int]] = {}
    for index, corpus in zip(indexes, corpora, strict=True):
        bad = [read_json(path.with_suffix(".json")) for path in corpus.fingerprints]
        for reason, id, detail in chain.from_iterable(bad):
            budget.count(reason, f"{index.folder}, {id!r}: {detail}")
        budget.seen += len(index)
        readable[corpus.digest] = [
            shard.count - len(lost) for shard, lost in zip(index.shards, bad, strict=True)
        ]
    budget.check(at_end=True)
    return readable


def _compare_share(config: DedupRunConfig, corpora: Sequence[Corpus], share: int) -> list[Duplicate]:
    num = len(config.shards)
    found = find_duplicates(corpora[:num], config.dedup, corpora[num:], share=share, num_shares=config.shares)
    return list(found)


def _write_lists(
    config: DedupRunConfig,
    indexes: Sequence[ShardIndex],
    found: Sequence[Duplicate],
    readable: Mapping[str, list[int]],
) -> None:
    out = Path(config.out)
    digests = write_drop_lists(
        out / DUPLICATES, found, {index.digest: readable[index.digest] for index in indexes}
    )
    dropped = Counter((each.corpus, each.kind) for each in found)
    rows = [
        CorpusCounts(
            folder=folder,
            digest=index.digest,
            samples=len(index),
            unreadable=len(index) - sum(readable[index.digest]),
            dropped={kind: dropped[index.digest, kind] for kind in KINDS},
            lists=digests[index.digest],
        )
        for folder, index in zip(config.shards, indexes, strict=True)
    ]
    counts = {"corpora": [asdict(row) for row in rows], DUPLICATES: digests[DUPLICATES]}
    write_json(out / DROP_LISTS / COUNTS, counts)


def counts_table(counts: Sequence[CorpusCounts]) -> str:
    """Returns samples and drops by kind, a line per corpus."""
    rows = [
        (row.folder, row.samples, *(row.dropped[kind] for kind in KINDS), row.unreadable, row.kept)
        for row in counts
    ]
    totals = ("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    cells = [[name, *(f"{number:,}" for number in numbers)] for name, *numbers in (*rows, totals)]
    return text_table(("corpus", "samples", *KINDS, "unreadable", "kept"), cells)
