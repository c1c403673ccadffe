"""One stage of curation: shards -> a chain of generators -> shards, part by part, on any executor.

    out/stage.json               what the stage was made of: its input's digest and the chain's settings
    out/dropped/000003.json      the samples of input shard 3 that were dropped: [[id, reason], ...]
    out/shard-*.tar, index.json  what was kept, see shards.py

A stage that is finished is not run again; one that was killed continues behind its finished parts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from data_pipeline.config import ShardConfig
from data_pipeline.executor import Executor, run_parts
from data_pipeline.shard_index import INDEX, ShardIndex
from data_pipeline.shard_writer import finish_shards, write_atomically, write_part
from data_pipeline.shards import read_shard
from data_pipeline.types import BadSample, Sample

MANIFEST = "stage.json"
MAX_BAD = 0.05
"""Share of a shard's samples that may be unreadable; they are dropped and counted, past this the stage stops."""

Drop = Callable[[Sample, str], None]
Chain = Callable[[Iterator[Sample], Drop, int], Iterator[Sample]]
"""Samples of one shard in, kept samples out, with the shard's number in the input; drop(sample, reason) is called
for each that is not kept."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What a stage left."""

    index: ShardIndex
    dropped: dict[str, int]  # by reason

    @property
    def kept(self) -> int:
        return len(self.index)


def run_stage(
    chain: Chain,
    source: str,
    out: str,
    *,
    settings: dict[str, object],
    limits: ShardConfig,
    executor: Executor = "local",
    workers: int = 1,
) -> StageReport:
    """Send each shard of `source` through `chain` into a part of `out`.

    Args:
        chain: a module's function or a functools.partial of one; deterministic.
        settings: what decides the result besides the input and `limits`, as JSON holds it; a finished or
            interrupted stage with other settings is not touched.

    Raises:
        ValueError: `out` holds a stage of another input or of other settings.
    """
    folder, index = Path(out), ShardIndex.load(source)
    cut = {field.name: getattr(limits, field.name) for field in fields(ShardConfig)}
    _claim(folder, {"input": index.digest, **settings, **cut})
    parts = range(len(index.shards))
    if not (folder / INDEX).exists():
        work = partial(_run_part, chain, source, out, ShardConfig(**cut))
        run_parts(work, parts, executor=executor, workers=workers, desc=f"write {folder.name}")
        finish_shards(folder, len(parts))
    return StageReport(index=ShardIndex.load(folder), dropped=_count_drops(folder, parts))


def _claim(folder: Path, settings: dict[str, object]) -> None:
    (folder / "dropped").mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    wanted = json.loads(json.dumps(settings))
    if manifest.exists() and (found := json.loads(manifest.read_text())) != wanted:
        changed = ", ".join(sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)))
        raise ValueError(
            f"{folder} was made with another {changed}; choose another folder, or delete it to make it anew"
        )
    if not manifest.exists() and (folder / INDEX).exists():
        raise ValueError(f"{folder} holds shards that are no stage's; choose another folder")
    write_atomically(manifest, json.dumps(wanted, indent=1).encode())


def _run_part(chain: Chain, source: str, out: str, limits: ShardConfig, part: int) -> None:
    """Write part `part` of a stage; done already, it is left as it is."""
    index, drops = ShardIndex.load(source), list[tuple[str, str]]()
    num_bad = 0

    def drop_bad(name: str, error: BadSample) -> None:
        nonlocal num_bad
        drops.append((name, error.reason))
        num_bad += 1
        if num_bad > max(1, MAX_BAD * index.shards[part].count):
            raise ValueError(
                f"{num_bad} samples of {index.shards[part].file} in {source} cannot be read, the last one {name}: "
                f"{error}; `omr data validate {source}` says what is broken"
            )

    def samples() -> Iterator[Sample]:
        read = read_shard(index, part, drop_bad)
        yield from chain(read, lambda sample, reason: drops.append((sample.id, reason)), part)
        # Before the writer sees the end and calls the part finished: a finished part has its list.
        write_atomically(_drops_path(Path(out), part), json.dumps(drops, ensure_ascii=False).encode())

    write_part(samples(), Path(out), part, **asdict(limits))


def _drops_path(out: Path, part: int) -> Path:
    return out / "dropped" / f"{part:06d}.json"


def _count_drops(out: Path, parts: Iterable[int]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(reason for _, reason in json.loads(_drops_path(out, part).read_text()))
    return dict(sorted(reasons.items()))
