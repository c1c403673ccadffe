"""One stage of curation: shards -> a chain of generators -> shards, part by part, on any executor.

    out/stage.json               what the stage was made of: its input's digest and its settings
    out/dropped/000003.json      who of input shard 3 was dropped, and who could not be read: ids and reasons
    out/shard-*.tar, index.json  what was kept, see shards.py

A stage that is finished is not run again; one that was killed continues behind its finished parts.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from data_pipeline.config import WorkConfig
from data_pipeline.errors import BadSample
from data_pipeline.files import read_json, write_json
from data_pipeline.parts import run_parts
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_shard
from data_pipeline.shards.index import INDEX, ShardIndex
from data_pipeline.shards.writer import finish_shards, write_part
from data_pipeline.types import Sample

MANIFEST = "stage.json"

Drop = Callable[[Sample, str], None]
Chain = Callable[[Iterator[Sample], Drop, int], Iterator[Sample]]
"""Samples of one shard in, kept samples out, with the shard's number in the input; drop(sample, reason) is called
for each that is not kept."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What a stage left."""

    index: ShardIndex
    dropped: dict[str, int]  # by reason, the most frequent first

    @property
    def kept(self) -> int:
        return len(self.index)


def run_stage(
    chain: Chain,
    source: str,
    out: str,
    *,
    settings: dict[str, object],
    writer: ShardConfig = ShardConfig(),
    max_bad_samples: int | float = 100,
    rewrite: bool = False,
    work: WorkConfig = WorkConfig(),
) -> StageReport:
    """Send each shard of `source` through `chain` into a part of `out`.

    Args:
        chain: a module's function or a functools.partial of one; deterministic.
        settings: what decides the result besides the input and `writer`, as JSON holds it.
        rewrite: a stage of other settings or input is removed and made anew, instead of refused.
        max_bad_samples: samples that cannot be read are dropped and counted; past this many the stage stops.

    Raises:
        ValueError: `out` holds a stage of another input or of other settings, or too much cannot be read.
    """
    folder, index = Path(out), ShardIndex.load(source)
    _claim(folder, {"input": index.digest, **settings, **asdict(writer)}, rewrite)
    parts = range(len(index.shards))
    if not (folder / INDEX).exists():
        fn = partial(_run_part, chain, source, out, writer, max_bad_samples)
        run_parts(fn, parts, work=work, desc=f"write {folder.name}")
        for left in (folder / "dropped").glob("*.partial"):  # by workers that were killed
            left.unlink()
    bad, reasons = list[tuple[str, str]](), Counter[str]()
    for part in parts:
        found = read_json(_drops_path(folder, part))
        bad += found["bad"]
        reasons.update(reason for kind in ("dropped", "bad") for _, reason in found[kind])
    _check_bad(source, bad, max_bad_samples)
    return StageReport(index=finish_shards(folder, len(parts)), dropped=dict(reasons.most_common()))


def _claim(folder: Path, settings: dict[str, object], rewrite: bool) -> None:
    manifest = folder / MANIFEST
    wanted = json.loads(json.dumps(settings))
    found = read_json(manifest) if manifest.exists() else {}
    if found == wanted:
        return
    for left in folder.glob(f"{MANIFEST}*.partial"):  # killed at this very place
        left.unlink()
    if not found and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something that is no stage's; choose another folder")
    if found and (rewrite or not any(folder.glob("*.tar"))):  # or nothing came of it
        _remove(folder)
    elif found:
        changed = ", ".join(sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name)))
        raise ValueError(
            f"{folder} was made with another {changed}; choose another folder, or delete it to make it anew"
        )
    write_json(manifest, wanted)


def _remove(folder: Path) -> None:
    """In one step, so that a kill leaves no half of it in the way."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # of a removal that was killed
    folder.replace(old)
    shutil.rmtree(old)


def _run_part(
    chain: Chain, source: str, out: str, writer: ShardConfig, max_bad_samples: int | float, part: int
) -> None:
    """Write part `part` of a stage; done already, it is left as it is."""
    bad, dropped = list[tuple[str, str]](), list[tuple[str, str]]()

    def drop_bad(name: str, error: BadSample) -> None:
        bad.append((name, error.reason))
        _check_bad(source, bad, max_bad_samples)

    def samples() -> Iterator[Sample]:
        read = read_shard(ShardIndex.load(source), part, drop_bad)
        yield from chain(read, lambda sample, reason: dropped.append((sample.id, reason)), part)
        # Before the writer sees the end and calls the part finished: a finished part has its lists.
        write_json(_drops_path(Path(out), part), {"bad": bad, "dropped": dropped})

    write_part(samples(), Path(out), part, writer)


def _drops_path(out: Path, part: int) -> Path:
    return out / "dropped" / f"{part:06d}.json"


def _check_bad(source: str, bad: list[tuple[str, str]], most: int | float) -> None:
    if len(bad) > most:
        name, reason = bad[-1]
        raise ValueError(
            f"{len(bad)} samples of {source} cannot be read, more than max_bad_samples={most}, the last one {name} "
            f"({reason}); `omr data validate {source}` says what is broken"
        )
