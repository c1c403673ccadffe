"""`omr report RUN`: one self-contained HTML page about a run, whatever of it is there.

Sections are strings made from the dataclasses of report_data; text that came from a model or from data is
escaped where it is placed, and the page's content policy lets nothing but its own script run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from launch.report.charts import (
    NUM_COLORS,
    Interval,
    Line,
    duration_bars,
    format_number,
    format_seconds,
    interval_plot,
    line_chart,
    stacked_bars,
)
from launch.report.funnel import funnel_charts
from launch.report.load import Evaluation, Metrics, Run, load_run
from launch.report.page import figure as _figure
from launch.report.page import fill_page, slug
from launch.report.page import section as _section
from launch.report.rollouts import gallery

LABELS = {"base": "before training", "sft": "after SFT", "rl": "after RL"}
TOTAL = "total"  # the key of summary.json's seconds that is no phase, when it is there
PHASES = ("generate", "reward", "train", "sync")


def write_report(run: Path) -> Path:
    """Write RUN/report.html and return its path; raises ValueError when there is nothing to report."""
    out = run / "report.html"
    page = render(load_run(run))
    part = out.with_suffix(".html.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, out)
    return out


def render(run: Run) -> str:
    """The page as a string; the same run gives the same bytes."""
    sections = {
        "Accuracy": _accuracy(run),
        "Data": _data(run),
        "Supervised fine-tuning": _sft(run.sft),
        "Reinforcement learning": _rl(run.rl),
        "Speed": _speed(run),
        "Rollouts": _rollouts(run),
    }
    body = _header(run, sections) + "".join(sections.values()) + _footer(run)
    return fill_page(f"{run.name} · run report", body)


# --- head and foot


def _header(run: Run, sections: dict[str, str]) -> str:
    missing = {
        "Accuracy": "No accuracy: no evaluation is there yet (eval/*/summary.json).",
        "Supervised fine-tuning": "No supervised fine-tuning: its metrics.jsonl is not there.",
        "Reinforcement learning": "No reinforcement learning: its metrics.jsonl is not there.",
        "Speed": "No times: neither metrics.jsonl nor summary.json has any.",
        "Rollouts": "No rollouts: rollouts.jsonl is not there or empty.",
    }
    notes = [text for name, text in missing.items() if not sections[name]] + list(run.notes)
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    links = "".join(f'<a href="#{slug(name)}">{name}</a>' for name, section in sections.items() if section)
    return (
        f'<header id="summary"><div class="eyebrow">Megatron-OMR · run report</div>'
        f'<h1>{escape(run.name)}</h1><p class="lead">{_summary(run)}</p>{_tiles(run)}<nav>{links}</nav>'
        + (f'<ul class="notes" id="notes">{items}</ul>' if notes else "")
        + "</header>"
    )


def _summary(run: Run) -> str:
    """One paragraph: what was trained, accuracy before and after, and whether the difference is one."""
    stages = ((run.sft, "supervised fine-tuning"), (run.rl, "reinforcement learning"))
    steps = [f"{len(stage.rows):,} steps of {name}" for stage, name in stages if stage]
    trained = f"{' and '.join(steps)}. " if steps else ""
    scores = [f"{e.overall.value:.1%} {_label(e)} ({_span(e.overall)})" for e in run.evaluations]
    scored = f"Held-out accuracy is {', '.join(scores)}. " if scores else "It has not been evaluated yet. "
    gain = run.difference
    if gain is None:
        return escape(trained + scored)
    clear = gain.low > 0 or gain.high < 0
    verdict = "which excludes zero" if clear else "which contains zero: this run shows no difference"
    return escape(
        f"{trained}{scored}The difference is {_points(gain)} points ({_points_span(gain)}), {verdict}."
    )


def _tiles(run: Run) -> str:
    tiles = [(f"{e.overall.value:.1%}", f"accuracy {_label(e)}", _span(e.overall)) for e in run.evaluations]
    if run.difference:
        tiles.append((_points(run.difference), "points of difference", _points_span(run.difference)))
    if run.seconds:
        total = run.seconds.get(TOTAL, sum(run.seconds.values()))
        tiles.append((_tile_time(total), "in all", f"{len(run.seconds.keys() - {TOTAL})} phases"))
    cells = (
        f'<div class="tile"><b>{escape(big)}</b>{escape(what)}<span>{escape(detail)}</span></div>'
        for big, what, detail in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>' if tiles else ""


def _footer(run: Run) -> str:
    facts = " · ".join(f"{escape(name)} {escape(value)}" for name, value in run.facts.items())
    return f"<footer>{facts}</footer>" if facts else ""


# --- sections


def _accuracy(run: Run) -> str:
    if not run.evaluations:
        return ""
    kinds = sorted({kind for evaluation in run.evaluations for kind in evaluation.by_kind})
    rows: list[tuple[str, Sequence[Interval | None]]] = [
        ("all questions", [e.overall for e in run.evaluations])
    ]
    rows += [(kind, [e.by_kind.get(kind) for e in run.evaluations]) for kind in kinds]
    keys = _keys([_label(e) for e in run.evaluations])
    plot = interval_plot("Accuracy on the held-out questions, with 95% intervals", rows)
    figures = [
        _figure("accuracy", "Accuracy, overall and by kind", f"Bars are 95% intervals.<br>{keys}", plot)
    ]
    if any(e.facts for e in run.evaluations):
        figures.append(
            _figure("evaluation", "What was asked and answered", "", _evaluation_table(run.evaluations))
        )
    return _section("Accuracy", "Greedy answers to questions that no training step has seen.", figures)


def _evaluation_table(evaluations: Sequence[Evaluation]) -> str:
    facts = list(dict.fromkeys(name for e in evaluations for name in e.facts))
    names = {
        "count": "questions",
        "length mean": "mean length, tokens",
        "length p50": "median length, tokens",
    }
    names |= {"length p95": "95th percentile of length", "truncated": "cut off at the length limit"}
    rows = [("", [_label(e) for e in evaluations])]
    for fact in facts:
        numbers = [format_number(e.facts[fact]) if fact in e.facts else "–" for e in evaluations]
        rows.append((names.get(fact, fact), numbers))
    lines = (
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f"<table>{''.join(lines)}</table>{_flips(evaluations)}"


def _flips(evaluations: Sequence[Evaluation]) -> str:
    """How many answers turned right and how many turned wrong, between the first and the last evaluation."""
    before, after = evaluations[0].accuracy_by_id, evaluations[-1].accuracy_by_id
    shared = before.keys() & after.keys()
    if len(evaluations) < 2 or not shared:
        return ""
    gained = sum(before[key] < 0.5 <= after[key] for key in shared)
    lost = sum(after[key] < 0.5 <= before[key] for key in shared)
    counts = f"{gained} turned right and {lost} turned wrong"
    return f'<p class="meta">Of {len(shared):,} questions: {counts} from first to last evaluation.</p>'


def _data(run: Run) -> str:
    if not run.funnel.rows:
        return ""
    figures = [
        _figure(name, title, escape(caption), content)
        for name, title, caption, content in funnel_charts(run.funnel)
    ]
    return _section(
        "Data", "How many samples each stage of the recipe left, and what took the others.", figures
    )


def _sft(metrics: Metrics | None) -> str:
    if metrics is None:
        return ""
    figures = [
        _lines(metrics, "sft-loss", "Loss", "Cross-entropy per answer token, in nats.", {"loss": ""}),
        _lines(metrics, "sft-grad-norm", "Gradient norm", "Before clipping.", {"grad_norm": ""}, log=True),
    ]
    return _section("Supervised fine-tuning", _smoothing_note(metrics), figures)


def _rl(metrics: Metrics | None) -> str:
    if metrics is None:
        return ""
    parts = {"reward": "reward", "reward_accuracy": "accuracy", "reward_format": "format"}
    mismatch = {"mismatch_mean": "mean", "mismatch_max": "max"}
    lengths = {"response_len_mean": "mean", "response_len_max": "max"}
    groups = {"groups_total": "asked", "groups_kept": "kept"}
    gap = "Absolute logprob difference per token between engine and trainer."
    figures = [
        _lines(
            metrics,
            "rl-reward",
            "Reward",
            "Mean over the answers of a step, and its parts.",
            parts,
            ceiling=1.0,
        ),
        _lines(metrics, "rl-entropy", "Entropy", "Of the policy, per token, in nats.", {"entropy": ""}),
        _lines(
            metrics, "rl-clip", "Clip fraction", "Share that the policy loss clipped.", {"clip_fraction": ""}
        ),
        _lines(metrics, "rl-mismatch", "Mismatch", gap, mismatch, log=True),
        _lines(metrics, "rl-length", "Response length", "In tokens.", lengths),
        _lines(
            metrics, "rl-truncated", "Truncated answers", "Cut off at the length limit.", {"truncated": ""}
        ),
        _lines(metrics, "rl-groups", "Groups with signal", "Kept for training, of those asked.", groups),
        _lines(metrics, "rl-grad-norm", "Gradient norm", "Before clipping.", {"grad_norm": ""}, log=True),
    ]
    return _section("Reinforcement learning", _smoothing_note(metrics), figures)


def _speed(run: Run) -> str:
    figures = [_phase_figure(run.rl)] if run.rl else []
    seconds = [(name, value) for name, value in run.seconds.items() if value >= 0 and name != TOTAL]
    if seconds:
        bars = duration_bars("Time by phase of the whole run", seconds)
        figures.append(_figure("seconds", "Time of the whole run", "By phase.", bars))
    tokens = {"tokens_per_second": ""}
    if run.sft:
        figures.append(
            _lines(run.sft, "sft-tokens", "Tokens per second, SFT", "All tokens of the batches.", tokens)
        )
        figures.append(_lines(run.sft, "sft-mfu", "MFU, SFT", "Share of the hardware's peak.", {"mfu": ""}))
    if run.rl:
        figures.append(
            _lines(
                run.rl, "rl-tokens", "Tokens per second, RL", "Of answers, while engines generate.", tokens
            )
        )
    return _section("Speed", "Where the time went.", figures) if any(figures) else ""


def _phase_figure(metrics: Metrics) -> str:
    """Seconds of each RL step by phase; what the phases do not explain is `other`."""
    bars = []
    for step, row in metrics.rows:
        if any(f"seconds_{phase}" in row for phase in PHASES):
            parts = [max(0.0, row.get(f"seconds_{phase}", 0.0)) for phase in PHASES]
            bars.append((step, [*parts, max(0.0, row.get("seconds_step", 0.0) - sum(parts))]))
    if not bars:
        return ""
    names = [*PHASES, "other"]
    means = [sum(values[i] for _, values in bars) / len(bars) for i in range(len(names))]
    keys = _keys([f"{name} {format_seconds(mean)}" for name, mean in zip(names, means, strict=True)])
    chart = stacked_bars("Seconds of each RL step by phase", names, bars, "s")
    return _figure("rl-seconds", "Time of an RL step", f"Seconds by phase; means:<br>{keys}", chart)


def _rollouts(run: Run) -> str:
    intro = "What the policy was asked and answered, from the first step to the last; best and worst first."
    return _section("Rollouts", intro, [gallery(run.groups)], layout="gallery") if run.groups else ""


# --- parts


def _lines(
    metrics: Metrics,
    name: str,
    title: str,
    caption: str,
    labels: dict[str, str],
    *,
    ceiling: float | None = None,
    log: bool = False,
) -> str:
    """A line chart of the metrics in `labels` (metric: name of its line); empty when none was logged."""
    lines = [Line(name=label, points=metrics.points(key)) for key, label in labels.items()]
    if not any(line.points for line in lines):
        return ""
    lost = sum(key in row for _, row in metrics.rows for key in labels) - sum(
        len(line.points) for line in lines
    )
    caption += f" Not drawn: {lost} values that are not finite." if lost else ""
    chart = line_chart(f"{title} by step", lines, ceiling=ceiling, log=log)
    return _figure(name, title, escape(caption), chart)


def _keys(names: Sequence[str]) -> str:
    swatches = (f'<i class="c{i % NUM_COLORS}"></i>{escape(name)}' for i, name in enumerate(names))
    return "".join(f'<span class="key">{swatch}</span>' for swatch in swatches)


def _smoothing_note(metrics: Metrics) -> str:
    first, last = metrics.rows[0][0], metrics.rows[-1][0]
    return f"Steps {first} to {last}. Faint: each step; strong: moving average, ending in its last value."


def _label(evaluation: Evaluation) -> str:
    return LABELS.get(evaluation.name, evaluation.name)


def _tile_time(seconds: float) -> str:
    units = ((3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((unit for unit in units if seconds >= 2 * unit[0]), units[-1])
    return f"{seconds / size:.1f} {unit}"


def _span(interval: Interval) -> str:
    return f"95% CI {100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _points(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f}".replace("-", "−")


def _points_span(interval: Interval) -> str:
    return f"95% CI {100 * interval.low:+.1f} to {100 * interval.high:+.1f}".replace("-", "−")
