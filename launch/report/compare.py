"""Reads the runs that are compared, finds those that differ in nothing but their seed, and how the others differ."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from data_pipeline.files import to_json
from launch.config import RL_STAGES
from launch.report.charts import Interval
from launch.report.curves import EXACT, Curve
from launch.report.lines import Line, draw_lines, smooth
from launch.report.load import Metrics, load_metrics, load_score
from launch.report.page import Figure

SEEDS = ("seed", "loader.seed")
PLACES = ("run", "model", "shards", "loader.shards", "held_out.shards", "held_out.benchmarks")
ASIDE = ("checkpoint.", "fault.", "log.", "validation.")
"""Beginnings of fields that change nothing of what is learned."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run."""

    name: str
    config: dict[str, object]  # by the names on the command line; empty where there is no config.json
    metrics: Metrics | None
    score: Interval | None  # accuracy after the run, of an evaluation beside it or in it

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return 1 + self.metrics.rows[-1][0] if self.metrics else 0

    def curve(self, curve: Curve, key: str) -> tuple[tuple[int, float], ...]:
        """Returns the points of a metric; none where it was not logged."""
        return curve.points(self.metrics, key) if self.metrics else ()


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Runs that differ in nothing but their seed and folders."""

    name: str
    runs: tuple[ComparedRun, ...]

    def line(self, curve: Curve, key: str, place: int) -> Line:
        """Returns the run's line; of several, the mean of their smoothed lines, with their range as its band.

        The mean is over the runs that logged the metric, up to the last step that all of them have.
        """
        logged = [points for run in self.runs if (points := run.curve(curve, key))]
        if len(logged) < 2:
            points = logged[0] if logged else ()
            return Line(name=self.name, points=points, place=place, is_exact=key.startswith(EXACT))
        lines = [dict(points if key.startswith(EXACT) else smooth(points)) for points in logged]
        shared = sorted(set.intersection(*(set(line) for line in lines)))
        values = [(step, [line[step] for line in lines]) for step in shared]
        return Line(
            name=self.name,
            points=tuple((step, fmean(each)) for step, each in values),
            band=tuple((step, min(each), max(each)) for step, each in values),
            place=place,
        )

    def value_of(self, field: str) -> str:
        """Returns the values that the runs have for a field of their configs, as text."""
        values = dict.fromkeys(_to_text(run.config.get(field)) for run in self.runs)
        return ", ".join(values)


def load_runs(paths: Sequence[Path], notes: list[str]) -> list[ComparedRun]:
    """Reads the runs; a demo's folder stands for each of its RL runs.

    Raises:
        ValueError: a folder is given twice, is not there, or holds no run; or there is none.
    """
    if not paths:
        raise ValueError("no run is given; give folders: omr compare runs/demo/rl runs/demo/rl_dapo")
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder; give folders of runs, such as runs/demo/rl")
        is_run = any((path / name).is_file() for name in ("config.json", "metrics.jsonl"))
        found = [path] if is_run else list_rl_runs(path)
        if not found:
            raise ValueError(
                f"{path} holds no run: neither config.json and metrics.jsonl, nor a demo's {', '.join(RL_STAGES)}"
            )
        folders += found
    names = name_runs(folders)
    return [load_compared(folder, name, notes) for folder, name in zip(folders, names, strict=True)]


def list_rl_runs(demo: Path) -> list[Path]:
    """Returns the folders of a demo's RL runs, GSPO's first."""
    return [demo / stage for stage in RL_STAGES if (demo / stage / "config.json").is_file()]


def load_compared(run: Path, name: str, notes: list[str]) -> ComparedRun:
    """Reads one run, which may be unfinished."""
    config = read_config(run / "config.json", notes)
    scores = [
        load_score(place / "summary.json", notes) for place in (run / "eval", run.parent / "eval" / run.name)
    ]
    return ComparedRun(
        name=name,
        config=dict(flatten(config)),
        metrics=load_metrics(run, notes),
        score=next((score for score in scores if score), None),
    )


def read_config(path: Path, notes: list[str]) -> dict[str, object]:
    """Returns a run's config; nothing where there is none, or, with a note, where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        notes.append(f"{path.parent.name}/{path.name} is not readable and is left out ({error}).")
        return {}


def name_runs(folders: Sequence[Path]) -> list[str]:
    """Returns for each folder the shortest end of its path that no other one has.

    Raises:
        ValueError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if twice := next(
        (folder for folder, each in zip(folders, parts, strict=True) if parts.count(each) > 1), None
    ):
        raise ValueError(f"{twice} is given twice; give each run once")
    depth = 1
    while len({each[-depth:] for each in parts}) < len(parts):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def group_seeds(runs: Sequence[ComparedRun]) -> list[Configuration]:
    """Returns the configurations: runs are one where all but seed and folders is equal, and each seed is another."""
    alike: dict[str, list[ComparedRun]] = defaultdict(list)
    for run in runs:
        decisive = {name: run.config[name] for name in sorted(run.config) if _decides(name)}
        alike[to_json(decisive) if decisive else run.name].append(run)
    found: list[Configuration] = []
    for members in alike.values():
        seeds = {run.config.get("seed") for run in members}
        if 1 < len(seeds) == len(members):
            name = f"{members[0].name} ({len(members)} seeds)"
            found.append(Configuration(name=name, runs=tuple(members)))
        else:
            found += [Configuration(name=run.name, runs=(run,)) for run in members]
    return found


def find_differences(configurations: Sequence[Configuration]) -> list[tuple[str, list[str]]]:
    """Returns the fields in which configurations differ, each with its value in each of them."""
    fields = dict.fromkeys(name for each in configurations for run in each.runs for name in run.config)
    rows = [(name, [each.value_of(name) for each in configurations]) for name in fields if not _aside(name)]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def draw_comparison(
    curve: Curve, configurations: Sequence[Configuration], *, names: bool = False
) -> Figure | None:
    """Returns a chart of the first metric with a line for each configuration; None where none logged it.

    Args:
        names: whether the lines bear the names of their configurations.
    """
    key = next(iter(curve.metrics))
    lines = [each.line(curve, key, place) for place, each in enumerate(configurations)]
    if not any(line.points for line in lines):
        return None
    without = [line.name for line in lines if not line.points]
    note = f"Not logged by {', '.join(without)}." if without else ""
    label = f"{curve.title} by step, of each run"
    chart = draw_lines(label, lines, ceiling=curve.ceiling, log=curve.log, names=names)
    return Figure(f"compare-{curve.name}", curve.title, curve.caption, chart, note=note)


def _decides(field: str) -> bool:
    return field not in (*SEEDS, *PLACES) and not field.startswith(ASIDE)


def _aside(field: str) -> bool:
    return field == "run" or field.startswith(ASIDE)


def flatten(config: dict[str, object], section: str = "") -> Iterable[tuple[str, object]]:
    """Yields the fields of a config by their names on the command line."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value


def _to_text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_to_text, value)) or "none"
    return "–" if value is None else str(value)
