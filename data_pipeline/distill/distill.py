"""Distillation: the right responses of teachers to the questions of some shards, as new shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data_pipeline.distill.config import DistillConfig
from data_pipeline.distill.responses import merge_responses, responses_digest
from data_pipeline.distill.teacher import build_samples
from data_pipeline.distill.teachers import read_teacher_stats
from data_pipeline.files import write_json
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.stage import Drop, run_stage
from data_pipeline.types import Sample


def write_distilled(config: DistillConfig) -> ShardIndex:
    """Writes OUT/stats.json, and the kept responses as samples to OUT/shards, once all questions have been asked.

    The same call again changes nothing; other responses, or another `per_question` or `keep`, replace OUT/shards.

    Raises:
        ValueError: responses are missing, none was kept, or OUT/shards was made by another command.
    """
    index, out = ShardIndex.load(config.shards), Path(config.out)
    stats, outs = read_teacher_stats(config), [ask.out for ask in config.asks]
    digest = responses_digest(outs, index)
    counts = {name: {s: asdict(counts) for s, counts in found.items()} for name, found in stats.items()}
    write_json(out / "stats.json", counts)
    if not any(counts.kept for found in stats.values() for counts in found.values()):
        raise ValueError(f"no response was kept; look at responses/ in {', '.join(outs)}")
    return run_stage(
        partial(build_kept, config),
        config.shards,
        str(out / "shards"),
        settings={
            "per_question": config.per_question,
            "keep": None if config.keep == "first" else config.keep,
            "responses": digest,
        },
        rewrite=("per_question", "keep", "responses"),
        work=config.work,
    ).index


def build_kept(config: DistillConfig, samples: Iterable[Sample], drop: Drop, number: int) -> Iterator[Sample]:
    """Yields the kept responses to the samples of the `number`-th shard, of all teachers, as samples to learn from."""
    outs = [ask.out for ask in config.asks]
    responses = merge_responses(outs, ShardIndex.load(config.shards), number)
    named = bool(config.teachers[0].name)
    return build_samples(samples, responses, config.per_question, drop, keep=config.keep, named=named)
