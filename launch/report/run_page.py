"""`omr report RUN`: one self-contained HTML page about a run, with the sections whose data are there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from launch.config import RL_STAGES
from launch.report.axes import format_number, format_seconds, format_span
from launch.report.charts import Interval, draw_bars, draw_intervals
from launch.report.compare import Configuration, draw_comparison, list_rl_runs, load_compared
from launch.report.curves import ACCURACY, CLIP, ENTROPY, GRAD_NORM, LENGTH, REWARD, draw_curve
from launch.report.funnel import funnel_figures
from launch.report.load import Evaluation, Run, ShownGroup, load_run
from launch.report.page import Figure, Section, ShownImage, Table, Tile, png_image, write_page
from launch.report.sections import (
    IDLE,
    MFU,
    RL_TOKENS,
    TOKENS,
    draw_phases,
    make_card,
    make_section,
    rl_section,
    sft_section,
    updates_section,
)

FACTS = {
    "count": "questions",
    "length mean": "mean length, tokens",
    "length p50": "median length, tokens",
    "length p95": "95th percentile of length",
    "truncated": "cut off at the length limit",
}
MISSING = {
    "Accuracy": "No accuracy: no evaluation is there yet (eval/*/summary.json).",
    "Supervised fine-tuning": "No supervised fine-tuning: its metrics.jsonl is not there.",
    "Reinforcement learning": "No reinforcement learning: its metrics.jsonl is not there.",
    "Speed": "No times: neither metrics.jsonl nor summary.json has any.",
    "Rollouts": "No rollouts: rollouts.jsonl is not there or empty.",
}
TOTAL = "total"  # the key of summary.json's seconds that is no phase, when it is there


def write_report(run: Path) -> Path:
    """Writes RUN/report.html and returns its path; the same run gives the same bytes.

    Raises:
        ValueError: there is nothing to report.
    """
    found = load_run(run)
    learning = (sft_section(found.sft), rl_section(found.rl), updates_section(found.rl), _side_by_side(run))
    sections = [
        section for section in (_accuracy(found), _data(found), *learning, _speed(found)) if section.figures
    ]
    titles = [section.title for section in sections] + (["Rollouts"] if found.groups else [])
    facts = {"seed": found.summary.seed} if found.summary.seed is not None else {}
    return write_page(
        run / "report.html",
        "run.html",
        title=f"{found.name} · run report",
        name=found.name,
        lead=_summarize(found),
        tiles=_tiles(found),
        titles=titles,
        notes=[*(text for title, text in MISSING.items() if title not in titles), *found.notes],
        sections=sections,
        steps=[
            (step, [make_card(each.group, _images(each)) for each in members])
            for step, members in groupby(found.groups, key=lambda each: each.group.step)
        ],
        facts=[f"{name} {value}" for name, value in (facts | found.summary.versions).items()],
    )


def _summarize(run: Run) -> str:
    """Returns the steps of each training, the accuracies, and whether their difference excludes zero."""
    stages = ((run.sft, "supervised fine-tuning"), (run.rl, "reinforcement learning"))
    steps = [f"{len(stage.rows):,} steps of {name}" for stage, name in stages if stage]
    trained = f"{' and '.join(steps)}. " if steps else ""
    scores = [f"{e.overall.value:.1%} {e.label} ({_span(e.overall)})" for e in run.evaluations]
    scored = f"Held-out accuracy is {', '.join(scores)}. " if scores else "It has not been evaluated yet. "
    return trained + scored + " ".join(_describe_gain(gain, name) for name, gain in _gains(run))


def _gains(run: Run) -> list[tuple[str, Interval]]:
    """Returns the differences that RL made, each with the name of its algorithm where there are several."""
    gains = run.summary.gains
    return [(RL_STAGES.get(stage, stage) if len(gains) > 1 else "", gain) for stage, gain in gains.items()]


def _describe_gain(gain: Interval, algorithm: str) -> str:
    clear = gain.low > 0 or gain.high < 0
    verdict = "which excludes zero" if clear else "which contains zero: this run shows no difference"
    by = f" by {algorithm}" if algorithm else ""
    return f"The difference{by} is {_points(gain)} points ({_points_span(gain)}), {verdict}."


def _tiles(run: Run) -> list[Tile]:
    tiles = [Tile(f"{e.overall.value:.1%}", f"accuracy {e.label}", _span(e.overall)) for e in run.evaluations]
    for name, gain in _gains(run):
        tiles.append(
            Tile(_points(gain), f"points by {name}" if name else "points of difference", _points_span(gain))
        )
    if seconds := run.summary.seconds:
        total = seconds.get(TOTAL, sum(seconds.values()))
        tiles.append(Tile(format_span(total), "in all", f"{len(seconds.keys() - {TOTAL})} phases"))
    return tiles


# --- sections


def _accuracy(run: Run) -> Section:
    figures = [_accuracy_figure(run.evaluations)] if run.evaluations else []
    if any(e.facts or e.baseline for e in run.evaluations):
        figures.append(_evaluation_figure(run.evaluations))
    return Section("Accuracy", _describe_questions(run.evaluations), figures)


def _describe_questions(evaluations: Sequence[Evaluation]) -> str:
    """Returns whether the questions were trained on, as far as that was searched, and whether baselines are beaten."""
    found = [(e, e.baseline) for e in evaluations if e.baseline]
    if len(found) < len(evaluations) or not found:
        seen = "Whether training saw the questions was not searched in each evaluation (--train_shards)."
    elif count := max(baseline.questions_seen for _, baseline in found):
        seen = f"Training samples ask {count:,} of the questions: the same text and images."
    elif all(baseline.is_complete for _, baseline in found):
        seen = "No training sample has the text and images of one of the questions."
    else:
        searched = min(baseline.train_samples for _, baseline in found)
        seen = f"None of the {searched:,} training samples that were searched (not all) asks one of the questions."
    return " ".join([seen, *(f"{e.label.capitalize()}: {baseline.sentence}" for e, baseline in found)])


def _accuracy_figure(evaluations: Sequence[Evaluation]) -> Figure:
    kinds = sorted({kind for evaluation in evaluations for kind in evaluation.by_kind})
    rows: list[tuple[str, Sequence[Interval | None]]] = [("all questions", [e.overall for e in evaluations])]
    rows += [(kind, [e.by_kind.get(kind) for e in evaluations]) for kind in kinds]
    plot = draw_intervals("Accuracy on the held-out questions, with 95% intervals", rows)
    title, keys = "Accuracy, overall and by kind", [e.label for e in evaluations]
    return Figure("accuracy", title, "Bars are 95% intervals.", plot, keys=keys)


def _evaluation_figure(evaluations: Sequence[Evaluation]) -> Figure:
    facts = list(dict.fromkeys(name for e in evaluations for name in e.facts))
    rows = [
        (
            FACTS.get(fact, fact),
            [format_number(e.facts[fact]) if fact in e.facts else "–" for e in evaluations],
        )
        for fact in facts
    ]
    for name, label in (("by_text", "question text"), ("by_kind", "kind")):
        cells = [f"{getattr(e.baseline, name).value:.1%}" if e.baseline else "–" for e in evaluations]
        if any(e.baseline for e in evaluations):
            rows.append((f"right by the most frequent answer to each {label}", cells))
    table = Table("Evaluations", ["", *(e.label for e in evaluations)], rows)
    return Figure("evaluation", "Questions and responses", "", table=table, note=_count_changes(evaluations))


def _count_changes(evaluations: Sequence[Evaluation]) -> str:
    """Returns how many questions turned right and how many wrong, between the first and the last evaluation."""
    before, after = evaluations[0].accuracy_by_id, evaluations[-1].accuracy_by_id
    shared = before.keys() & after.keys()
    if len(evaluations) < 2 or not shared:
        return ""
    gained = sum(before[key] < 0.5 <= after[key] for key in shared)
    lost = sum(after[key] < 0.5 <= before[key] for key in shared)
    counts = f"{gained} turned right and {lost} turned wrong"
    return f"Of {len(shared):,} questions: {counts} from first to last evaluation."


def _data(run: Run) -> Section:
    figures = funnel_figures(run.funnel) if run.funnel.rows else []
    intro = "How many samples each stage of the recipe left, and why the others were dropped."
    return Section("Data", intro, figures)


def _side_by_side(demo: Path) -> Section:
    """Returns curves of each RL run of a demo, where there are several."""
    runs = [load_compared(folder, RL_STAGES[folder.name], []) for folder in list_rl_runs(demo)]
    lines = [Configuration(name=run.name, runs=(run,)) for run in runs if run.metrics]
    curves = (REWARD, ACCURACY, ENTROPY, LENGTH, CLIP, GRAD_NORM) if len(lines) > 1 else ()
    figures = [draw_comparison(curve, lines, names=True) for curve in curves]
    return make_section("Algorithms side by side", f"More of them: omr compare {demo}", figures)


def _speed(run: Run) -> Section:
    seconds = [(name, value) for name, value in run.summary.seconds.items() if value >= 0 and name != TOTAL]
    rows = [(name, value, format_seconds(value)) for name, value in seconds]
    bars = draw_bars("Time by phase of the whole run", rows) if rows else None
    figures = [
        draw_phases(run.rl),
        Figure("seconds", "Time of the whole run", "By phase.", bars) if bars else None,
        draw_curve(TOKENS, run.sft, "sft"),
        draw_curve(MFU, run.sft, "sft"),
        draw_curve(RL_TOKENS, run.rl, "rl"),
        draw_curve(IDLE, run.rl, "rl"),
    ]
    return make_section("Speed", "Where the time went.", figures)


# --- parts


def _images(each: ShownGroup) -> list[ShownImage]:
    return [ShownImage("image")] if each.images is None else list(map(png_image, each.images))


def _span(interval: Interval) -> str:
    return f"95% CI {100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _points(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f}".replace("-", "−")


def _points_span(interval: Interval) -> str:
    return f"95% CI {100 * interval.low:+.1f} to {100 * interval.high:+.1f}".replace("-", "−")
