"""Pass rates of questions: the share of a served model's responses that are right, in OUT/scores.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

from data_pipeline.distill.config import AskConfig
from data_pipeline.distill.responses import TeacherResponse, read_shard_responses
from data_pipeline.files import atomic_writer, to_json
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
            for id, rate in compute_pass_rates(read_shard_responses(config.out, index, number)).items():
                file.write(to_json({"id": id, "pass_rate": rate}).encode() + b"\n")
    return path


def compute_pass_rates(responses: Iterable[TeacherResponse]) -> dict[str, float]:
    """Returns the share of right responses among those received, for each question that received one."""
    right: dict[str, list[bool]] = {}
    for response in responses:
        if not response.is_failed:
            right.setdefault(response.id, []).append(response.accuracy > 0)
    return {id: sum(found) / len(found) for id, found in right.items()}


def read_scores(path: str | Path) -> dict[str, float]:
    """Returns pass rates by question id, as write_scores wrote them; raises ValueError if it finds something else."""
    try:
        with Path(path).open() as lines:
            return {row["id"]: row["pass_rate"] for row in map(json.loads, lines)}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"scores={path} holds no pass rates ({error!r}); give a {SCORES} that `omr data score` wrote"
        ) from error


def read_all_scores(paths: Sequence[str]) -> dict[str, float]:
    """Returns the pass rates in several files, kept between calls until a file changes; raises as read_scores."""
    return _read_all(tuple((path, Path(path).stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=1)  # a worker processes many shards
def _read_all(files: tuple[tuple[str, int], ...]) -> dict[str, float]:
    """Returns the pass rates in files of these paths and times."""
    return dict(chain.from_iterable(read_scores(path).items() for path, _ in files))


def add_pass_rates(
    samples: Iterable[Sample], rates: Mapping[str, float], drop: Callable[[Sample, str], None]
) -> Iterator[Sample]:
    """Yields the samples with a pass rate in their metadata: their own, their question's, or their corpus's.

    Samples without any, because no response of the model came, are dropped as "unscored".
    """
    for sample in samples:
        of_question = rates.get(str(sample.metadata.get("question")), sample.metadata.get("pass_rate"))
        rate = rates.get(sample.id, of_question)
        if rate is None:
            drop(sample, "unscored")
        else:
            yield replace(sample, metadata={**sample.metadata, "pass_rate": rate})
