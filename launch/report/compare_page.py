"""`omr compare RUN RUN ...`: one self-contained HTML page with the curves of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from launch.report.axes import format_number
from launch.report.compare import (
    Configuration,
    draw_comparison,
    find_differences,
    group_seeds,
    load_runs,
)
from launch.report.curves import (
    ACCURACY,
    CLIP,
    ENTROPY,
    GRAD_NORM,
    HELD_OUT,
    KL,
    LENGTH,
    LOSS,
    MISMATCH,
    RATIO,
    REFLECTION,
    REWARD,
    SOLUTIONS,
    TRUNCATED,
    Curve,
    benchmark_curve,
    pass_curve,
)
from launch.report.lines import MAX_LINES, Line, smooth
from launch.report.page import Figure, Section, Table, write_page

RATIOS = {"sequence_ratio_p01": "1%", "sequence_ratio_p99": "99%"}


def write_comparison(paths: Sequence[Path], out: Path) -> Path:
    """Writes the page and returns its path; the same runs give the same bytes.

    Raises:
        ValueError: a path is no run, or there are more configurations than lines that can be told apart.
    """
    notes: list[str] = []
    configurations = group_seeds(load_runs(paths, notes))
    if len(configurations) > MAX_LINES:
        raise ValueError(
            f"{len(configurations)} configurations are too many for one page, which tells {MAX_LINES} apart; runs "
            "that differ in their seed alone count once"
        )
    figures = [draw_comparison(curve, configurations) for curve in list_curves(configurations)]
    drawn = [figure for figure in figures if figure]
    if not drawn:
        raise ValueError(f"no run has a metrics.jsonl with steps: {', '.join(map(str, paths))}")
    count = f"{len(configurations)} configuration{'s' if len(configurations) > 1 else ''}"
    tables = [_differences(configurations), _final(configurations)]
    curves = Section("Curves", _explain(configurations), drawn)
    return write_page(
        out,
        "compare.html",
        title=f"{count} · comparison",
        name=f"{count} side by side",
        lead=_describe(configurations),
        titles=[section.title for section in (*tables, curves)],
        notes=[*_missing(configurations), *notes],
        tables=tables,
        curves=curves,
        keys=[each.name for each in configurations],
    )


def list_curves(configurations: Sequence[Configuration]) -> list[Curve]:
    """Returns the charts of a comparison, each of the first metric of its curve."""
    logged = [run.metrics.logged for each in configurations for run in each.runs if run.metrics]
    benchmarks = benchmark_curve(list(dict.fromkeys(key for each in logged for key in each)))
    losses = [_of(LOSS, key, name) for key, name in LOSS.metrics.items()]
    passes = _choose_passes([set(pass_curve(each).metrics) for each in logged])
    return [
        *(REWARD, ACCURACY, HELD_OUT._replace(caption="While training.")),
        *(_of(benchmarks, key, name) for key, name in benchmarks.metrics.items()),
        *([] if any("reward" in each for each in logged) else losses),  # RL's says nothing
        *(ENTROPY, LENGTH, TRUNCATED, CLIP),
        *(_of(RATIO, key, name) for key, name in RATIOS.items()),
        *(_of(passes, key, name) for key, name in passes.metrics.items()),
        *(_of(KL, key, name) for key, name in KL.metrics.items()),
        *(SOLUTIONS, REFLECTION, MISMATCH, GRAD_NORM),
    ]


def _choose_passes(logged: Sequence[set[str]]) -> Curve:
    """Returns pass@k of the largest k that each run logged, and of the largest of all, given what each logged."""

    def by_k(keys: set[str]) -> list[str]:
        return sorted(keys, key=lambda key: int(key.rpartition("_")[2]))

    some = [keys for keys in logged if keys]
    if not some:
        return pass_curve([])
    return pass_curve(by_k(set.intersection(*some))[-1:] + by_k(set.union(*some))[-1:])


def _of(curve: Curve, key: str, name: str) -> Curve:
    """Returns a chart of one metric of a chart of several."""
    return curve._replace(name=f"{curve.name}-{key}", title=f"{curve.title}, {name}", metrics={key: name})


def _describe(configurations: Sequence[Configuration]) -> str:
    count = sum(len(each.runs) for each in configurations)
    if count == len(configurations):
        return f"{count} runs."
    return f"{count} runs; those that differ in nothing but seed and folders are one configuration."


def _explain(configurations: Sequence[Configuration]) -> str:
    text = "Strong lines are moving averages, which end in their last value."
    if any(len(each.runs) > 1 for each in configurations):
        text += (
            " Of several seeds: their mean, and as a band their lowest and highest, while all of them last."
        )
    return text


def _differences(configurations: Sequence[Configuration]) -> Section:
    rows = find_differences(configurations)
    if not rows:
        text = (
            "There is one configuration."
            if len(configurations) == 1
            else "Their configs are equal, or not there."
        )
        return Section("Fields that differ", text, [])
    table = Table("Fields that differ", ["", *(each.name for each in configurations)], rows)
    text = "Fields of the configs, as on the command line, but for those of checkpoints, faults and logs."
    return Section("Fields that differ", text, [Figure("differences", "", "", table=table)])


def _final(configurations: Sequence[Configuration]) -> Section:
    rows = [("steps", [", ".join(f"{run.steps:,}" for run in each.runs) for each in configurations])]
    scores = [[run.score.value for run in each.runs if run.score] for each in configurations]
    if any(scores):
        rows.append(("accuracy, evaluated after the run", list(map(_spread, scores))))
    for curve in list_curves(configurations):
        key = next(iter(curve.metrics))
        lines = [each.line(curve, key, 0) for each in configurations]
        if any(line.points for line in lines):
            rows.append((curve.title.lower(), list(map(_last, lines))))
    table = Table("Final numbers", ["", *(each.name for each in configurations)], rows)
    text = "Where the smoothed curves end; of several seeds the mean, with lowest and highest."
    return Section("Final numbers", text, [Figure("final", "", "", table=table)])


def _last(line: Line) -> str:
    """Returns where a line ends, as the charts draw it."""
    if not line.points:
        return "–"
    if not line.band:
        return format_number(smooth(line.points)[-1][1])
    _, low, high = line.band[-1]
    return f"{format_number(line.points[-1][1])}\n{format_number(low)} to {format_number(high)}"


def _spread(values: Sequence[float]) -> str:
    """Returns a mean, with the lowest and highest of several values."""
    if len(values) < 2:
        return format_number(values[0]) if values else "–"
    return f"{format_number(fmean(values))}\n{format_number(min(values))} to {format_number(max(values))}"


def _missing(configurations: Sequence[Configuration]) -> list[str]:
    """Returns what runs lack: files, or steps that they are still to do."""
    notes = []
    for run in (run for each in configurations for run in each.runs):
        wanted = run.config.get("steps")
        if not run.config:
            notes.append(f"{run.name} has no config.json, so that its fields are not compared.")
        if not run.metrics:
            notes.append(f"{run.name} has no steps in metrics.jsonl yet.")
        elif isinstance(wanted, int) and run.steps < wanted:
            notes.append(f"{run.name} is unfinished: {run.steps:,} of {wanted:,} steps.")
    return notes
