"""Runs one stage of curation: shards -> a chain of generators -> shards, part by part, on any executor.

    out/stage.json               what decided the result: digest of the input, and settings
    out/dropped/000003.json      of input shard 3 the ids and reasons of samples dropped and of unreadable ones
    out/shard-*.tar, index.json  the kept samples, see format.py

A finished stage is not run again; one that was killed continues after its finished parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from data_pipeline.config import WorkConfig
from data_pipeline.errors import BadSample, ErrorBudget
from data_pipeline.files import claim_folder, read_json, write_json
from data_pipeline.parts import run_parts
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import INDEX, ShardIndex
from data_pipeline.shards.writer import finish_shards, write_part
from data_pipeline.types import Sample

MANIFEST = "stage.json"

Drop = Callable[[Sample, str], None]
Chain = Callable[[Iterator[Sample], Drop, int], Iterator[Sample]]
"""Takes the samples of one shard, and its number; yields those to keep, and calls drop(sample, reason) for others."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """The result of a stage."""

    index: ShardIndex
    dropped: dict[str, int]  # by reason, the most frequent first

    @property
    def kept(self) -> int:
        return len(self.index)


def run_stage(
    chain: Chain,
    shards: str,
    out: str,
    *,
    settings: dict[str, object],
    writer: ShardConfig = ShardConfig(),
    max_bad_samples: int | float = 100,
    rewrite: bool | Sequence[str] = False,
    work: WorkConfig = WorkConfig(),
) -> StageReport:
    """Sends each shard of `shards` through `chain` into a part of `out`.

    Args:
        chain: a module's function or a functools.partial of one; deterministic.
        settings: what decides the result besides the input and `writer`, as JSON holds it.
        max_bad_samples: unreadable samples are dropped and counted; past this many the stage stops.
        rewrite: replace a stage of other settings or input, instead of refusing it; as names, only if no others differ.

    Raises:
        ValueError: `out` holds a stage of another input or of other settings, or too much cannot be read.
    """
    folder, index = Path(out), ShardIndex.load(shards)
    wanted = {"input": index.digest, **settings, **asdict(writer)}
    claim_folder(folder, MANIFEST, wanted, replace=not any(folder.glob("*.tar")) or rewrite)
    parts = range(len(index.shards))
    if not (folder / INDEX).exists():
        fn = partial(_run_part, chain, shards, out, writer, max_bad_samples)
        run_parts(fn, parts, work=work, desc=f"write {folder.name}")
    budget, reasons = _budget(shards, index, max_bad_samples), Counter[str]()
    for part in parts:
        found = read_json(_drops_path(folder, part))
        for name, reason in found["bad"]:
            budget.count(reason, name)
        reasons.update(reason for kind in ("dropped", "bad") for _, reason in found[kind])
    budget.check(at_end=True)
    return StageReport(index=finish_shards(folder, len(parts)), dropped=dict(reasons.most_common()))


def _run_part(
    chain: Chain, shards: str, out: str, writer: ShardConfig, max_bad_samples: int | float, part: int
) -> None:
    """Writes part `part` of a stage; a finished one is left as it is."""
    index, bad, dropped = ShardIndex.load(shards), list[tuple[str, str]](), list[tuple[str, str]]()
    budget = _budget(shards, index, max_bad_samples)

    def skip(name: str, error: BadSample) -> None:
        bad.append((name, error.reason))
        budget.add(name, error)

    def samples() -> Iterator[Sample]:
        read = read_shard(index, part, skip)
        yield from chain(read, lambda sample, reason: dropped.append((sample.id, reason)), part)
        # before the writer sees the end and records the part as finished: a finished part has its lists
        write_json(_drops_path(Path(out), part), {"bad": bad, "dropped": dropped})

    write_part(samples(), out, part, writer)


def _budget(shards: str, index: ShardIndex, limit: int | float) -> ErrorBudget:
    """Returns the budget of the whole stage; each part checks its own samples against it."""
    fix = f"`omr data validate {shards}` shows what is broken"
    return ErrorBudget(limit=limit, option="max_bad_samples", fix=fix, seen=len(index))


def _drops_path(out: Path, part: int) -> Path:
    return out / "dropped" / f"{part:06d}.json"
