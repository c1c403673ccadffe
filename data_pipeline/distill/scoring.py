"""Pass rates of questions: the share of a served model's responses that are right, in OUT/scores.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from data_pipeline.distill.config import AskConfig
from data_pipeline.distill.responses import pass_rates, read_shard_responses
from data_pipeline.files import atomic_writer
from data_pipeline.shards.index import ShardIndex
from data_pipeline.types import Sample

SCORES = "scores.jsonl"


def write_scores(config: AskConfig) -> Path:
    """Writes a line of id and pass_rate per question, in the shards' order, once all have been asked.

    Questions without a response have no line.

    Raises:
        ValueError: responses are missing.
    """
    path, index = Path(config.out) / SCORES, ShardIndex.load(config.shards)
    with atomic_writer(path) as file:
        for number in range(len(index.shards)):
            rates = pass_rates(read_shard_responses(config.out, index, number))
            for id, rate in rates.items():
                file.write(json.dumps({"id": id, "pass_rate": rate}).encode() + b"\n")
    return path


def read_scores(path: str | Path) -> dict[str, dict[str, float]]:
    """Returns the scores of each sample by id, from a file that write_scores wrote."""
    with Path(path).open() as lines:
        rows = map(json.loads, lines)
        return {row.pop("id"): row for row in rows}


def with_scores(
    samples: Iterable[Sample],
    scores: Mapping[str, Mapping[str, float]],
    names: Collection[str],
    drop: Callable[[Sample, str], None],
) -> Iterator[Sample]:
    """Yields the samples with their own scores and those of their questions in their metadata.

    Args:
        names: of the scores that were asked for; a sample that has one of them neither here nor from its corpus is
            dropped as "unscored", because no response of the model came.
    """
    for sample in samples:
        of_question = scores.get(str(sample.metadata.get("question")), {})
        scored = replace(sample, metadata={**sample.metadata, **of_question, **scores.get(sample.id, {})})
        if all(name in scored.metadata for name in names):
            yield scored
        else:
            drop(sample, "unscored")
