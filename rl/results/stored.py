"""Reads evaluations from disk: the folder of one, or a folder with several, one a benchmark."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.benchmarks.metrics import Metadata
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.errors import BadSample
from data_pipeline.files import read_json
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import ShardIndex
from data_pipeline.types import Sample
from data_pipeline.verify.record import read_responses
from rl.evaluation.answers import MANIFEST, RESPONSES, SUMMARY
from rl.evaluation.summary import Records
from rl.types import AskedResponse

CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class StoredEvaluation:
    """One evaluation: its settings and its responses."""

    folder: Path
    name: str  # the corpus of its questions, such as a benchmark; the folder's where they are of several
    settings: Mapping[str, object]  # asked.json: what decides a response or its score
    config: Mapping[str, object]  # config.json
    questions: Mapping[str, Records]  # by id

    @property
    def benchmark(self) -> Benchmark | None:
        """The published benchmark whose questions these are, None where they are others."""
        return BENCHMARKS.get(self.name)

    @property
    def num_responses(self) -> int:
        """Responses to each question that could be asked; asked.json does not say it, as it may grow."""
        return max(len(records) for records in self.questions.values())

    @property
    def max_tokens(self) -> int:
        """The most tokens that a response could have; where that is not known, the longest one's."""
        limit, length = (self.settings.get(name) for name in ("sampling.max_tokens", "engine.max_model_len"))
        if not isinstance(limit, int):
            return max((record.response_len for record in self.list_responses()), default=1)
        return min(limit, length - 1) if isinstance(length, int) else limit

    def list_responses(self, ids: Iterable[str] | None = None) -> list[AskedResponse]:
        """Returns the responses to these questions, by default to all."""
        names = self.questions if ids is None else ids
        return [record for name in names for record in self.questions[name] if not record.fault]


def mean_tokens(responses: Sequence[AskedResponse]) -> float:
    """Returns the mean length of responses; 0 without any."""
    return float(np.mean([record.response_len for record in responses] or [0]))


def is_evaluation(folder: Path) -> bool:
    """Returns True for the folder of an evaluation, or one with several."""
    return bool(list_folders(folder))


def list_folders(folder: Path) -> list[Path]:
    """Returns the folders of evaluations: this one, else those in it; none where it is the folder of a run."""
    if (folder / "metrics.jsonl").is_file():
        return []
    places = [folder] if (folder / RESPONSES).is_file() else sorted(folder.glob("*/"))
    return [place for place in places if (place / RESPONSES).is_file() and (place / MANIFEST).is_file()]


def load_evaluations(folder: Path) -> dict[str, StoredEvaluation]:
    """Returns the evaluations of a folder by their names.

    Raises:
        ValueError: there is none, one is unfinished, or a file cannot be read.
    """
    folders = list_folders(folder)
    if not folders:
        raise ValueError(
            f"{folder} is no evaluation: wanted {MANIFEST} and {RESPONSES}, there or in its folders; give the --out of "
            "`omr eval`"
        )
    found = [_load(place) for place in folders]
    if len(found) > 1:  # two runs on one benchmark have its name
        twice = {name for name, count in Counter(each.name for each in found).items() if count > 1}
        return {each.folder.name if each.name in twice else each.name: each for each in found}
    return {each.name: each for each in found}


def _load(folder: Path) -> StoredEvaluation:
    if not (folder / SUMMARY).is_file():  # short responses come first: the numbers would lean to them
        raise ValueError(
            f"{folder} is unfinished, it has no {SUMMARY}: run its `omr eval` again, which goes on"
        )
    questions = defaultdict[str, list[AskedResponse]](list)
    for record in read_responses(folder / RESPONSES, AskedResponse):
        questions[record.id].append(record)
    if not questions:
        raise ValueError(f"{folder / RESPONSES} has no responses; run the evaluation again, it goes on")
    for records in questions.values():
        records.sort(key=lambda record: record.rollout)
    sources = {records[0].source for records in questions.values()}
    source = sources.pop() if len(sources) == 1 else ""
    return StoredEvaluation(
        folder=folder,
        name=source or folder.resolve().name,
        settings=read_json(folder / MANIFEST),
        config=read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {},
        questions=questions,
    )


def read_metadata(evaluation: StoredEvaluation) -> dict[str, Metadata]:
    """Returns the metadata of all questions by id.

    Raises:
        ValueError: the shards cannot be read, or lack one of them.
    """
    samples = read_questions(evaluation, evaluation.questions)
    if missing := [name for name in evaluation.questions if name not in samples]:
        raise ValueError(
            f"{evaluation.folder / CONFIG} names shards={evaluation.config.get('shards')!r}, from which "
            f"{len(missing):,} of {len(evaluation.questions):,} questions cannot be read, such as {missing[0]}"
        )
    return {name: sample.metadata for name, sample in samples.items()}


def read_questions(evaluation: StoredEvaluation, ids: Collection[str]) -> dict[str, Sample]:
    """Returns the samples of these questions that can be read from the evaluation's shards."""
    shards, found = str(evaluation.config.get("shards", "")), dict[str, Sample]()
    try:
        refs = [ref for ref in ShardIndex.load(shards) if ref.id in ids]
    except (OSError, ValueError):
        return {}
    for ref in refs:
        try:
            found[ref.id] = read_sample(shards, ref)
        except (BadSample, OSError):
            continue
    return found
