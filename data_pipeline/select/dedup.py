"""`omr data dedup`: folders of shards -> fingerprints, a file per shard -> lists of duplicates, and counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from data_pipeline.select.near_duplicates import FingerprintedFolder, find_duplicates
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import ShardIndex
from data_pipeline.tables import text_table


def list_duplicates(config: DedupRunConfig) -> dict[str, dict[str, int]]:
    """Writes the lists that drop_lists.py describes; what is done already, of the same data, is not done again.

    Returns:
        By folder the counts of samples, of duplicates by kind, and of unreadable and kept samples.

    Raises:
        ValueError: a folder holds no shards or is given twice, or too many samples are unreadable.
    """
    out, num, indexes = Path(config.out), len(config.shards), _load_indexes(config)
    corpora = [_name_fingerprints(config, index) for index in indexes]
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
        fn = partial(_compare, config, corpora)
        found = run_parts(fn, range(config.shares), work=config.work, desc="compare")
        _write_lists(config, indexes[:num], list(chain.from_iterable(found)), readable)
    corpora_counts = read_json(counts)["corpora"]
    return {folder: row["counts"] for folder, row in zip(config.shards, corpora_counts, strict=True)}


def _load_indexes(config: DedupRunConfig) -> list[ShardIndex]:
    if not config.shards:
        raise ValueError("shards is empty; give at least one folder of shards")
    indexes: dict[str, ShardIndex] = {}
    for folder in (*config.shards, *config.against):
        index = ShardIndex.load(folder)
        first = indexes.setdefault(index.digest, index)
        if first is not index:
            raise ValueError(f"{folder} holds the same shards as {first.folder}; give each corpus once")
    return list(indexes.values())


def _name_fingerprints(config: DedupRunConfig, index: ShardIndex) -> FingerprintedFolder:
    """Names a file per shard by its data and the encoder: fingerprints are used again by other runs."""
    keys = (f"{shard.sha256} {config.dedup.text_encoder}" for shard in index.shards)
    names = (hashlib.sha256(key.encode()).hexdigest()[:24] for key in keys)
    paths = tuple(Path(config.out) / "fingerprints" / f"{name}.npz" for name in names)
    return FingerprintedFolder(digest=index.digest, fingerprints=paths)


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
    config: DedupRunConfig, indexes: Sequence[ShardIndex], corpora: Sequence[FingerprintedFolder]
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
        lost = zip(index.shards, bad, strict=True)
        readable[corpus.digest] = [shard.count - len(unreadable) for shard, unreadable in lost]
    budget.check(at_end=True)
    return readable


def _compare(config: DedupRunConfig, corpora: Sequence[FingerprintedFolder], share: int) -> list[Duplicate]:
    num, shares = len(config.shards), config.shares
    return list(find_duplicates(corpora[:num], config.dedup, corpora[num:], share=share, num_shares=shares))


def _write_lists(
    config: DedupRunConfig,
    indexes: Sequence[ShardIndex],
    found: Sequence[Duplicate],
    readable: Mapping[str, list[int]],
) -> None:
    out, rows = Path(config.out), []
    ours = {index.digest: readable[index.digest] for index in indexes}
    digests = write_drop_lists(out / DUPLICATES, found, ours)
    num_found = Counter((each.corpus, each.kind) for each in found)
    for folder, index in zip(config.shards, indexes, strict=True):
        by_kind = {kind: num_found[index.digest, kind] for kind in get_args(Kind)}
        left = sum(ours[index.digest])
        counts = {"samples": len(index), **by_kind, "unreadable": len(index) - left}
        counts["kept"] = left - sum(count for kind, count in by_kind.items() if kind != "reported")
        lists = digests[index.digest]
        rows.append({"folder": folder, "digest": index.digest, "counts": counts, "lists": lists})
    write_json(out / DROP_LISTS / COUNTS, {"corpora": rows, DUPLICATES: digests[DUPLICATES]})


def counts_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Returns a line per corpus, and one for all, of what list_duplicates returned."""
    rows = [(folder, *of_corpus.values()) for folder, of_corpus in counts.items()]
    totals = ("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    cells = [[name, *(f"{number:,}" for number in numbers)] for name, *numbers in (*rows, totals)]
    return text_table(("corpus", *next(iter(counts.values()))), cells)
