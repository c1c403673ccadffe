"""Distillation: the right responses of a teacher to the questions of some shards, as new shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data_pipeline.distill.config import DistillConfig
from data_pipeline.distill.responses import read_shard_responses, read_stats, responses_digest
from data_pipeline.distill.teacher import build_samples
from data_pipeline.files import write_json
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.stage import Drop, run_stage
from data_pipeline.types import Sample


def write_distilled(config: DistillConfig) -> ShardIndex:
    """Writes OUT/stats.json, and the kept responses as samples to OUT/shards, once all questions have been asked.

    The same call again changes nothing; other responses, or another `per_question`, replace OUT/shards.

    Raises:
        ValueError: responses are missing, none was kept, or OUT/shards was made by another command.
    """
    index, out = ShardIndex.load(config.shards), Path(config.out)
    stats = read_stats(out, index)
    write_json(out / "stats.json", {source: asdict(found) for source, found in stats.items()})
    if not any(found.kept for found in stats.values()):
        raise ValueError(f"no response was kept; look at them in {out / 'responses'}")
    return run_stage(
        partial(_distilled, config),
        config.shards,
        str(out / "shards"),
        settings={"per_question": config.per_question, "responses": responses_digest(out, index)},
        rewrite=("per_question", "responses"),
        work=config.work,
    ).index


def _distilled(config: DistillConfig, samples: Iterator[Sample], drop: Drop, part: int) -> Iterator[Sample]:
    responses = read_shard_responses(config.out, ShardIndex.load(config.shards), part)
    return build_samples(samples, responses, config.per_question, drop)
