"""What a run left on disk, read into frozen dataclasses. Knows files, not HTML.

A run may be unfinished, killed in mid-line or partly deleted: what cannot be read is left out and noted.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from data_pipeline.curate.funnel import FUNNEL, Funnel
from data_pipeline.shards.format import read_sample
from data_pipeline.types import SampleRef
from launch.report.charts import Interval

MAX_GALLERY_STEPS = 6
GROUPS_PER_STEP = 4
MAX_TEXT = 2_000  # characters of one answer that are kept
THUMBNAIL = 320  # longest side of a gallery image, in pixels

Json = dict[str, object]
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A metrics.jsonl: numbers by step, ascending; a step logged twice (a resumed run) counts as its last."""

    rows: tuple[tuple[int, dict[str, float]], ...]

    def points(self, key: str) -> tuple[tuple[int, float], ...]:
        """(step, value) where `key` was logged and is finite."""
        return tuple((step, row[key]) for step, row in self.rows if math.isfinite(row.get(key, math.nan)))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores on the held-out questions."""

    name: str  # sft | rl | any other
    overall: Interval
    by_kind: dict[str, Interval]
    facts: dict[str, float]  # questions, truncated, length p50, ...
    accuracy_by_id: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One rollout with its reward parts."""

    text: str
    reward: float
    accuracy: float
    format: float
    extracted: str
    decided_by: str
    length: int  # tokens
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class AnswerGroup:
    """A question with its answers at one step."""

    step: int
    ref: SampleRef
    kind: str
    question: str
    reference: str
    policy_version: int
    answers: tuple[Answer, ...]
    images: tuple[bytes, ...] | None = None  # PNG thumbnails; None: not readable


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that the page shows."""

    name: str
    sft: Metrics | None
    rl: Metrics | None
    evaluations: tuple[Evaluation, ...]  # before first
    difference: Interval | None
    seconds: dict[str, float]
    facts: dict[str, str]  # seed, versions
    groups: tuple[AnswerGroup, ...]
    notes: tuple[str, ...]
    funnel: Funnel = Funnel()  # of the data, empty where there is none


def load_run(run: Path) -> Run:
    """Read a run's folder; raises ValueError when it holds nothing to report."""
    notes: list[str] = []
    stages = _load_stages(run, notes)
    summary = _read_object(run / "summary.json", notes)
    evaluations = _load_evaluations(run, summary, notes)
    funnel = _load_funnel(run / FUNNEL, notes)
    if not stages and not evaluations and not funnel.rows:
        raise ValueError(
            f"run={run} has none of sft/metrics.jsonl, rl/metrics.jsonl, metrics.jsonl, summary.json, "
            f"eval/*/summary.json and {FUNNEL}; give the folder of a run, for example runs/demo"
        )
    rl_folder = run / "rl" if (run / "rl").is_dir() else run
    return Run(
        name=run.resolve().name,
        sft=stages.get("sft"),
        rl=stages.get("rl"),
        evaluations=evaluations,
        difference=_interval(summary.get("difference"), "value"),
        seconds=_numbers(summary.get("seconds")),
        facts=_facts(summary),
        groups=_load_groups(rl_folder, notes),
        notes=tuple(notes),
        funnel=funnel,
    )


def _load_funnel(path: Path, notes: list[str]) -> Funnel:
    try:
        return Funnel.load(path)
    except ValueError:
        notes.append(f"{_short(path)} is not readable and is left out.")
        return Funnel()


def _load_stages(run: Path, notes: list[str]) -> dict[str, Metrics]:
    paths = [path for path in (run / "sft", run / "rl", run) if (path / "metrics.jsonl").is_file()]
    stages: dict[str, Metrics] = {}
    for folder in paths:
        metrics = _load_metrics(folder / "metrics.jsonl", notes)
        if metrics is None:
            continue
        kind = "rl" if any("reward" in row for _, row in metrics.rows) else "sft"
        stages.setdefault(kind, metrics)
    return stages


def _load_metrics(path: Path, notes: list[str]) -> Metrics | None:
    rows: dict[int, dict[str, float]] = {}
    for record in _parsed_lines(path, _metrics_row, notes):
        rows[record[0]] = record[1]
    return Metrics(rows=tuple(sorted(rows.items()))) if rows else None


def _metrics_row(line: Json) -> tuple[int, dict[str, float]]:
    return int(_number(line["step"])), _numbers({key: value for key, value in line.items() if key != "step"})


def _load_evaluations(run: Path, summary: Json, notes: list[str]) -> tuple[Evaluation, ...]:
    found: dict[str, Evaluation] = {}
    for path in sorted(run.glob("eval/*/summary.json")):
        evaluation = _evaluation(
            path.parent.name, _read_object(path, notes), path.parent / "responses.jsonl", notes
        )
        if evaluation is None:
            notes.append(f"{_short(path)} has no accuracy and is left out.")
            continue
        found[evaluation.name] = evaluation
    for name in ("sft", "rl"):
        overall = _interval(summary.get(name), "accuracy")
        if name not in found and overall:
            found[name] = Evaluation(name=name, overall=overall, by_kind={}, facts={}, accuracy_by_id={})
    order = {"base": 0, "sft": 1, "rl": 2}
    return tuple(sorted(found.values(), key=lambda e: (order.get(e.name, 3), e.name)))


def _evaluation(name: str, summary: Json, answers: Path, notes: list[str]) -> Evaluation | None:
    overall = _interval(summary, "accuracy")
    if overall is None:
        return None
    kinds = {kind: _interval(value, "accuracy") for kind, value in _mapping(summary.get("by_kind")).items()}
    lengths = {f"length {key}": value for key, value in _numbers(summary.get("length")).items()}
    facts = {
        key: value for key, value in _numbers(summary).items() if key in ("count", "truncated")
    } | lengths
    right: dict[str, float] = {}
    if answers.is_file():
        right = dict(_parsed_lines(answers, lambda line: (str(line["id"]), _number(line["accuracy"])), notes))
    by_kind = {kind: interval for kind, interval in sorted(kinds.items()) if interval}
    return Evaluation(name=name, overall=overall, by_kind=by_kind, facts=facts, accuracy_by_id=right)


def _load_groups(folder: Path, notes: list[str]) -> tuple[AnswerGroup, ...]:
    """The first few groups of a few steps, spread evenly from the first to the last."""
    path = folder / "rollouts.jsonl"
    if not path.is_file():
        return ()
    by_step: dict[int, dict[str, AnswerGroup]] = {}
    for group in _parsed_lines(path, _answer_group, notes):
        groups = by_step.setdefault(group.step, {})
        if len(groups) < GROUPS_PER_STEP or group.ref.id in groups:
            groups[group.ref.id] = group
    chosen = [group for step in _spread_evenly(sorted(by_step)) for group in by_step[step].values()]
    shards = _read_object(folder / "config.json", notes).get("shards")
    shown = tuple(replace(group, images=_thumbnails(str(shards), group.ref)) for group in chosen)
    missing = sum(group.images is None for group in shown)
    if missing:
        notes.append(
            f"The images of {missing} of {len(shown)} shown questions could not be read from their shards."
        )
    return shown


def _spread_evenly(steps: list[int]) -> list[int]:
    if len(steps) <= MAX_GALLERY_STEPS:
        return steps
    last = len(steps) - 1
    return [steps[round(i * last / (MAX_GALLERY_STEPS - 1))] for i in range(MAX_GALLERY_STEPS)]


def _answer_group(line: Json) -> AnswerGroup:
    responses, place = line["responses"], _object(line["ref"])
    if not isinstance(responses, list) or not responses:
        raise ValueError("no responses")
    first = _object(responses[0])
    ref = SampleRef(
        id=str(place["id"]),
        shard=str(place["shard"]),
        offset=int(_number(place["offset"])),
        size=int(_number(place["size"])),
    )
    return AnswerGroup(
        step=int(_number(line["step"])),
        ref=ref,
        kind=str(first.get("kind", ""))[:60],
        question=str(line["question"]),
        reference=str(first["answer"]),
        policy_version=int(_number(line["policy_version"])),
        answers=tuple(_answer(_object(response)) for response in responses),
    )


def _answer(rollout: Json) -> Answer:
    text = str(rollout["response"])
    more = len(text) - MAX_TEXT
    return Answer(
        text=f"{text[:MAX_TEXT]} … ({more} more characters)" if more > 0 else text,
        reward=_number(rollout["reward"]),
        accuracy=_number(rollout["accuracy"]),
        format=_number(rollout["format"]),
        extracted=str(rollout.get("extracted", ""))[:200],
        decided_by=str(rollout.get("decided_by", "")),
        length=int(_number(rollout["response_len"])),
        finish_reason=str(rollout.get("finish_reason", "")),
    )


def _thumbnails(folder: str, ref: SampleRef) -> tuple[bytes, ...] | None:
    try:
        return tuple(_thumbnail(data) for data in read_sample(folder, ref).images)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # shard gone or damaged
        log.warning("report: images of %s in %s/%s are not readable: %s", ref.id, folder, ref.shard, error)
        return None


def _thumbnail(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _parsed_lines(path: Path, parse: Callable[[Json], T], notes: list[str]) -> Iterator[T]:
    """Each line that parses; at the end a note counts those that did not."""
    skipped = 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                item = parse(_object(json.loads(line)))
            except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
                skipped += 1
            else:
                yield item
    if skipped:
        notes.append(
            f"{_short(path)}: {skipped} unreadable {'line was' if skipped == 1 else 'lines were'} skipped."
        )


def _read_object(path: Path, notes: list[str]) -> Json:
    """A JSON object; empty when the file is missing, or (with a note) unreadable."""
    if not path.is_file():
        return {}
    try:
        return _object(json.loads(path.read_bytes()))
    except (TypeError, ValueError, RecursionError):
        notes.append(f"{_short(path)} is not readable and is left out.")
        return {}


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _object(value: object) -> Json:
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} instead of an object")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _numbers(value: object) -> dict[str, float]:
    items = _mapping(value).items()
    return {k: float(v) for k, v in items if isinstance(v, int | float) and not isinstance(v, bool)}


def _interval(value: object, key: str) -> Interval | None:
    """{key: v, "ci95": [low, high]} as an Interval, None when it has another form."""
    if not isinstance(value, dict):
        return None
    bounds = value.get("ci95")
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    numbers = _numbers({"value": value.get(key), "low": bounds[0], "high": bounds[1]})
    return Interval(**numbers) if len(numbers) == 3 and all(map(math.isfinite, numbers.values())) else None


def _facts(summary: Json) -> dict[str, str]:
    seed = {"seed": summary["seed"]} if "seed" in summary else {}
    return {key: str(value) for key, value in (seed | _mapping(summary.get("versions"))).items()}


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
