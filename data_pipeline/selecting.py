"""`omr data select`: shards -> the samples that are no duplicates and pass the filters, and why others do not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipeline.duplicates import read_dropped, without_duplicates
from data_pipeline.filters import build_filters, keep
from data_pipeline.select_config import SelectConfig
from data_pipeline.shard_index import INDEX, ShardIndex
from data_pipeline.shard_stream import stream_shard
from data_pipeline.shard_writer import write_shards
from data_pipeline.types import BadSample, Sample

DROPPED, MANIFEST = "dropped.jsonl", "select.json"


@dataclass(kw_only=True)
class Selection:
    """What became of the samples."""

    samples: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason


def select(config: SelectConfig) -> Selection | None:
    """Write the selected samples to `out`; None where the same selection is complete already.

    Raises:
        ValueError: `out` holds something else, nothing is kept, too much is unreadable, or a filter's value lacks.
    """
    index, out = ShardIndex.load(config.source), Path(config.out)
    duplicates = read_dropped(Path(config.duplicates), index.digest) if config.duplicates else {}
    wanted = _fingerprint(config, index)
    manifest = out / MANIFEST
    if (out / INDEX).exists():
        if manifest.exists() and json.loads(manifest.read_text()).get("select") == wanted:
            return None
        raise ValueError(f"{out} holds other shards; choose another folder, or delete it first")
    out.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"select": wanted}))  # before the index: what has one has the other
    found = Selection()
    selected = write_shards(
        _selected(config, index, duplicates, found), out, samples_per_shard=config.samples_per_shard
    )
    manifest.write_text(json.dumps({"select": wanted, "digest": selected.digest, **asdict(found)}, indent=1))
    return found


def _selected(
    config: SelectConfig, index: ShardIndex, duplicates: dict[int, Counter[str]], found: Selection
) -> Iterator[Sample]:
    """The kept samples; the others go to dropped.jsonl, which appears before the index does."""
    path = Path(config.out) / DROPPED
    partial = path.with_name(path.name + ".partial")
    filters = build_filters(config.filters)
    with partial.open("w") as lines:

        def drop_id(id: str, reason: str) -> None:
            found.dropped[reason] = found.dropped.get(reason, 0) + 1
            lines.write(json.dumps({"id": id, "reason": reason}, ensure_ascii=False) + "\n")

        def drop(sample: Sample, reason: str) -> None:
            drop_id(sample.id, reason)

        def drop_bad(id: str, error: BadSample) -> None:
            drop_id(id, error.reason)
            if found.dropped[error.reason] > config.max_bad_samples:
                raise ValueError(
                    f"more than max_bad_samples={config.max_bad_samples} samples of {config.source} are "
                    f"{error}; write the shards again, or raise the limit"
                )

        for number, shard in enumerate(index.shards):
            samples = stream_shard(index, number, drop_bad)
            samples = without_duplicates(samples, duplicates.get(number, Counter()), drop)
            for sample in keep(samples, filters, drop):
                found.kept += 1
                yield sample
            found.samples += shard.count
    if not found.kept:
        raise ValueError(f"no sample of {config.source} is kept ({found.dropped}); loosen the filters")
    partial.replace(path)


def _fingerprint(config: SelectConfig, index: ShardIndex) -> dict[str, object]:
    """What decides which samples are written."""
    options = asdict(config)
    listed = Path(config.duplicates).read_bytes() if config.duplicates else b""
    return {
        "source": index.digest,
        "duplicates": hashlib.sha256(listed).hexdigest()[:16],
        "filters": options["filters"],
        "samples_per_shard": config.samples_per_shard,
    }
