"""One stage of curation: shards -> a chain of generators -> shards, part by part, on any executor.

    out/stage.json               what the stage was made of: its input's digest and the chain's settings
    out/dropped-000003.jsonl     the samples of input shard 3 that were dropped: id and reason
    out/shard-*.tar, index.json  what was kept, see shards.py

A stage that is finished is not run again; one that was killed continues behind its finished parts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipeline.executor import Executor, run_parts
from data_pipeline.shard_index import INDEX, ShardIndex
from data_pipeline.shard_writer import finish_shards, write_part
from data_pipeline.shards import read_shard
from data_pipeline.types import Sample

MANIFEST = "stage.json"

Drop = Callable[[Sample, str], None]
Chain = Callable[[Iterator[Sample], Drop], Iterator[Sample]]
"""Samples in, kept samples out; drop(sample, reason) is called for each that is not kept."""


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
    executor: Executor = "local",
    workers: int = 1,
) -> StageReport:
    """Send each shard of `source` through `chain` into a part of `out`.

    Args:
        chain: a module's function or a functools.partial of one; deterministic.
        settings: what decides the result besides the input, as JSON holds it; a finished or interrupted stage
            with other settings is not touched.

    Raises:
        ValueError: `out` holds a stage of another input or of other settings.
    """
    folder, index = Path(out), ShardIndex.load(source)
    _claim(folder, {"input": index.digest, **settings})
    if not (folder / INDEX).exists():
        parts = range(len(index.shards))
        work = partial(_run_part, chain, source, out)
        run_parts(work, parts, executor=executor, workers=workers, desc=f"write {folder.name}")
        finish_shards(folder, len(parts))
    return StageReport(index=ShardIndex.load(folder), dropped=_count_drops(folder))


def _claim(folder: Path, settings: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    wanted = json.loads(json.dumps(settings))
    if manifest.exists() and (found := json.loads(manifest.read_text())) != wanted:
        changed = ", ".join(sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)))
        raise ValueError(
            f"{folder} was made with another {changed}; choose another folder, or delete it to make it anew"
        )
    if not manifest.exists() and (folder / INDEX).exists():
        raise ValueError(f"{folder} holds shards that are no stage's; choose another folder")
    manifest.write_text(json.dumps(wanted, indent=1) + "\n")


def _run_part(chain: Chain, source: str, out: str, part: int) -> None:
    """Write part `part` of a stage; done already, it is left as it is."""
    drops: list[tuple[str, str]] = []

    def samples() -> Iterator[Sample]:
        read = read_shard(ShardIndex.load(source), part)
        yield from chain(read, lambda sample, reason: drops.append((sample.id, reason)))
        # Before the writer sees the end and calls the part finished: a finished part has its list.
        _write_drops(Path(out) / f"dropped-{part:06d}.jsonl", drops)

    write_part(samples(), Path(out), part)


def _write_drops(path: Path, drops: list[tuple[str, str]]) -> None:
    draft = path.with_suffix(".partial")
    draft.write_text("".join(json.dumps({"id": name, "reason": reason}) + "\n" for name, reason in drops))
    draft.replace(path)


def _count_drops(folder: Path) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for path in sorted(folder.glob("dropped-*.jsonl")):
        with path.open() as lines:
            reasons.update(json.loads(line)["reason"] for line in lines)
    return dict(sorted(reasons.items()))
