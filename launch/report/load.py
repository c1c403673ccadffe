"""Reads the files of a run into frozen records; does not depend on HTML.

A run may be unfinished, killed in mid-line or partly deleted: what cannot be read is left out and noted.
"""

from __future__ import annotations

import io
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Self, TypeVar

from PIL import Image
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from data_pipeline.curate.funnel import FUNNEL, Funnel
from data_pipeline.errors import describe
from data_pipeline.shards.format import read_sample
from data_pipeline.types import SampleRef
from data_pipeline.verify.record import ScoredResponse
from launch.config import RL_STAGES
from launch.report.charts import Interval
from launch.report.page import draw_strip

MAX_GALLERY_STEPS = 6
GROUPS_PER_STEP = 4
THUMBNAIL = 320  # longest side of a gallery image, in pixels

T = TypeVar("T")
log = logging.getLogger(__name__)


def _keep_numbers(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {key: each for key, each in value.items() if type(each) in (int, float)}


Numbers = Annotated[dict[str, float], BeforeValidator(_keep_numbers)]
"""An object's fields that are numbers; others are ignored."""


def _interval_fields(value: object) -> object:
    match value:
        case {"accuracy": center, "ci95": [low, high]} | {"value": center, "ci95": [low, high]}:
            return {"value": center, "low": low, "high": high}
    raise ValueError(f"wanted accuracy or value, and ci95 with two numbers; saw {describe(value)}")


Score = Annotated[Interval, BeforeValidator(_interval_fields)]
"""A mean and its 95% interval, as summaries have them: {accuracy or value, ci95}."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The summary.json of a demo."""

    sft: Score | None = None
    rl: Score | None = None
    difference: Score | None = None
    differences: dict[str, Score] = field(default_factory=dict)  # by RL stages other than rl
    seconds: Numbers = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def gains(self) -> dict[str, Interval]:
        """The difference in accuracy that each RL stage made."""
        return ({"rl": self.difference} if self.difference else {}) | self.differences


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Scores of the most frequent training answers to an evaluation's questions, and how many were trained on."""

    by_text: Score
    by_kind: Score
    sentence: str  # whether the model beats them
    train_samples: int
    is_complete: bool  # these are all training samples
    questions_seen: int


@dataclass(frozen=True, kw_only=True)
class _EvaluationSummary:
    """The fields of eval/NAME/summary.json that are shown beside the accuracy."""

    by_kind: dict[str, Score] = field(default_factory=dict)
    length: Numbers = field(default_factory=dict)
    count: int | None = None
    truncated: int | None = None
    baseline: Baseline | None = None


@dataclass(frozen=True)
class _RunConfig:
    shards: str = ""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A metrics.jsonl: numbers by step, ascending; a step logged twice (a resumed run) counts as its last."""

    rows: tuple[tuple[int, dict[str, float]], ...]
    extremes: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """(step, value): the lowest and highest by metric, where rows are means over several steps."""

    def points(self, key: str) -> tuple[tuple[int, float], ...]:
        """(step, value) where `key` was logged and is finite."""
        return tuple((step, row[key]) for step, row in self.rows if math.isfinite(row.get(key, math.nan)))

    @property
    def logged(self) -> list[str]:
        """The metrics that were logged, in their order."""
        return list(dict.fromkeys(key for _, row in self.rows for key in row))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores on the held-out questions."""

    name: str  # sft | rl | rl_dapo | any other
    label: str = ""  # after SFT
    overall: Interval
    by_kind: dict[str, Interval] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)  # questions, truncated, length p50, ...
    accuracy_by_id: dict[str, float] = field(default_factory=dict)
    baseline: Baseline | None = None


@dataclass(frozen=True, kw_only=True)
class RewardedResponse(ScoredResponse):
    """A response with the parts of its reward."""

    parts: dict[str, float] = field(default_factory=dict)  # by function, before weighting


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """A line of rollouts.jsonl: a question and the responses to it at one step."""

    step: int
    ref: SampleRef
    question: str
    policy_version: int  # the oldest that sampled a token
    newest_version: int | None = None  # None: the same
    responses: Annotated[tuple[RewardedResponse, ...], Field(min_length=1)]

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """Parses a line; raises ValueError where it is none."""
        return _adapter(cls).validate_json(line, strict=True)


@dataclass(frozen=True, kw_only=True)
class ShownGroup:
    """A group with the images of its question."""

    group: RolloutGroup
    images: tuple[bytes, ...] | None  # PNG thumbnails; None: not readable


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the page shows."""

    name: str
    sft: Metrics | None
    rl: Metrics | None
    evaluations: tuple[Evaluation, ...]  # before first
    summary: RunSummary
    groups: tuple[ShownGroup, ...]
    notes: tuple[str, ...]
    funnel: Funnel  # of the data, empty where there is none


def load_run(run: Path) -> Run:
    """Reads a run's folder.

    Raises:
        ValueError: it holds nothing to report.
    """
    notes: list[str] = []
    stages = _load_stages(run, notes)
    summary = _read(run / "summary.json", RunSummary, notes) or RunSummary()
    evaluations = _load_evaluations(run, summary, notes)
    funnel = _read(run / FUNNEL, Funnel, notes) or Funnel()
    if not stages and not evaluations and not funnel.rows:
        raise ValueError(
            f"run={run} has none of sft/metrics.jsonl, rl/metrics.jsonl, metrics.jsonl, summary.json, "
            f"eval/*/summary.json and {FUNNEL}; give the folder of a run, for example runs/demo"
        )
    folders = [run / name for name in RL_STAGES if (run / name / "rollouts.jsonl").is_file()]
    groups = _load_groups(folders[0] if folders else run, notes)
    return Run(
        name=run.resolve().name,
        sft=stages.get("sft"),
        rl=stages.get("rl"),
        evaluations=evaluations,
        summary=summary,
        groups=groups,
        notes=tuple(notes),
        funnel=funnel,
    )


def accuracy_by_id(records: Iterable[ScoredResponse]) -> dict[str, float]:
    """Returns the mean accuracy of the responses to each question."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        found[record.id].append(record.accuracy)
    return {key: fmean(values) for key, values in found.items()}


def load_score(summary: Path, notes: list[str]) -> Interval | None:
    """Returns the accuracy in a summary.json of an evaluation; None where there is none."""
    return _read(summary, Score, notes)


def _load_stages(run: Path, notes: list[str]) -> dict[str, Metrics]:
    """Returns the metrics of sft and rl, from the folders of these names or from the run's own.

    Of a demo with several RL runs, rl is the first of them.
    """
    stages: dict[str, Metrics] = {}
    for name in ("sft", *RL_STAGES, ""):
        if metrics := load_metrics(run / name, notes):
            stages.setdefault("rl" if "reward" in metrics.logged else "sft", metrics)
    return stages


def load_metrics(run: Path, notes: list[str]) -> Metrics | None:
    """Returns what RUN/metrics.jsonl holds; None where there is nothing."""
    rows = dict(_parsed_lines(run / "metrics.jsonl", parse_metrics, notes))
    return Metrics(rows=tuple(sorted(rows.items()))) if rows else None


def parse_metrics(line: bytes) -> tuple[int, dict[str, float]]:
    """Returns the step of a line of metrics.jsonl and its numbers; raises ValueError where it is none."""
    row = _adapter(Numbers).validate_json(line)
    if not row.get("step", math.nan).is_integer():
        raise ValueError("no step")
    return int(row.pop("step")), row


def _load_evaluations(run: Path, summary: RunSummary, notes: list[str]) -> tuple[Evaluation, ...]:
    scores = (("sft", summary.sft), ("rl", summary.rl))
    found = {name: Evaluation(name=name, overall=score) for name, score in scores if score}
    for path in sorted(run.glob("eval/*/summary.json")):
        overall = _read(path, Score, notes)
        more = _read(path, _EvaluationSummary, notes) if overall else None
        if overall and more:
            found[path.parent.name] = _evaluation(path.parent, overall, more, notes)
    order = ["base", "sft", *RL_STAGES]
    names = sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
    labels = {"base": "before training", "sft": "after SFT"}
    labels |= {name: f"after {title}" for name, title in RL_STAGES.items()}
    if len(RL_STAGES.keys() & found.keys()) < 2:
        labels["rl"] = "after RL"
    return tuple(replace(found[name], label=labels.get(name, name)) for name in names)


def _evaluation(folder: Path, overall: Interval, summary: _EvaluationSummary, notes: list[str]) -> Evaluation:
    counts = {"count": summary.count, "truncated": summary.truncated}
    facts = {name: float(value) for name, value in counts.items() if value is not None}
    records = _parsed_lines(folder / "responses.jsonl", ScoredResponse.from_json, notes)
    return Evaluation(
        name=folder.name,
        overall=overall,
        by_kind=dict(sorted(summary.by_kind.items())),
        facts=facts | {f"length {key}": value for key, value in summary.length.items()},
        accuracy_by_id=accuracy_by_id(records),
        baseline=summary.baseline,
    )


def _load_groups(folder: Path, notes: list[str]) -> tuple[ShownGroup, ...]:
    """Returns the first few groups of a few steps, spread evenly from the first to the last."""
    by_step: dict[int, dict[str, RolloutGroup]] = {}
    for group in _parsed_lines(folder / "rollouts.jsonl", RolloutGroup.from_json, notes):
        groups = by_step.setdefault(group.step, {})
        if len(groups) < GROUPS_PER_STEP or group.ref.id in groups:
            groups[group.ref.id] = group
    steps, gaps = sorted(by_step), MAX_GALLERY_STEPS - 1
    spread = sorted({steps[round(i * (len(steps) - 1) / gaps)] for i in range(gaps + 1)}) if steps else []
    chosen = [group for step in spread for group in by_step[step].values()]
    config = (_read(folder / "config.json", _RunConfig, notes) if chosen else None) or _RunConfig()
    shown = tuple(
        ShownGroup(group=group, images=load_thumbnails(config.shards, group.ref)) for group in chosen
    )
    missing = sum(each.images is None for each in shown)
    if missing:
        notes.append(
            f"The images of {missing} of {len(shown)} shown questions could not be read from their shards."
        )
    return shown


def load_thumbnails(folder: str, ref: SampleRef) -> tuple[bytes, ...] | None:
    """Returns the images of a sample as PNG files, drawn anew, then a strip of frames of each of its videos.

    None where they cannot be read from their shard.
    """
    try:
        sample = read_sample(folder, ref)
        strips = [draw_strip(video.frames, THUMBNAIL) for video in sample.videos]
        return (*map(_thumbnail, sample.images), *strips)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # shard gone or damaged
        log.warning("report: images of %s in %s/%s are not readable: %s", ref.id, folder, ref.shard, error)
        return None


def _thumbnail(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _parsed_lines(path: Path, parse: Callable[[bytes], T], notes: list[str]) -> Iterator[T]:
    """Yields each line that parses; at the end notes how many did not. A missing file has no lines."""
    if not path.is_file():
        return
    skipped = 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                item = parse(line)
            except ValueError:
                skipped += 1
            else:
                yield item
    if skipped:
        notes.append(
            f"{_short(path)}: {skipped} unreadable {'line was' if skipped == 1 else 'lines were'} skipped."
        )


def _read(path: Path, kind: Any, notes: list[str]) -> Any:
    """Returns the object in a JSON file; None when the file is missing, or (with a note) not of that kind."""
    if not path.is_file():
        return None
    try:
        return _adapter(kind).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        notes.append(f"{_short(path)} is not readable and is left out ({reason}).")
        return None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Returns the parser of a type; making one takes longer than parsing a line."""
    return TypeAdapter(kind)


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
