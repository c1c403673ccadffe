"""Distillation: the right responses of a teacher to the questions of some shards, as new shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data_pipeline.distill.config import DistillConfig
from data_pipeline.distill.responses import read_shard_responses, read_stats, responses_digest
from data_pipeline.distill.teacher import distilled_samples
from data_pipeline.files import read_json, write_json
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.stage import MANIFEST, Drop, run_stage
from data_pipeline.types import Sample


def write_distilled(config: DistillConfig) -> ShardIndex:
    """Writes OUT/stats.json, and the kept responses as samples to OUT/shards, once all questions have been asked.

    The same call again changes nothing; other responses, or another `per_question`, replace OUT/shards.

    Raises:
        ValueError: responses are missing, none was kept, or OUT/shards was made by another command.
    """
    index, out = ShardIndex.load(config.shards), Path(config.out)
    stats, manifest = read_stats(out, index), out / "shards" / MANIFEST
    write_json(out / "stats.json", {source: asdict(found) for source, found in stats.items()})
    settings = {"per_question": config.per_question, "responses": responses_digest(out, index)}
    if not any(found.kept for found in stats.values()):
        raise ValueError(f"no response was kept; look at them in {out / 'responses'}")
    found = read_json(manifest) if manifest.exists() else {}
    others = {"input": index.digest, **asdict(ShardConfig()), **{name: found.get(name) for name in settings}}
    report = run_stage(
        partial(_distilled, config),
        config.shards,
        str(out / "shards"),
        settings=settings,
        rewrite=found == others,  # kept responses to these questions, of whatever settings
        work=config.work,
    )
    return report.index


def _distilled(config: DistillConfig, samples: Iterator[Sample], drop: Drop, part: int) -> Iterator[Sample]:
    responses = read_shard_responses(config.out, ShardIndex.load(config.shards), part)
    return distilled_samples(samples, responses, config.per_question, drop)
