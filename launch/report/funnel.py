"""Figures of the report's section about the data: the run's funnel, the published ones, and the dropped samples."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from data_pipeline.curate.funnel import TEACHER_HEADS, Funnel, teacher_cells
from launch.report.charts import draw_bars
from launch.report.page import Figure, Table

MAX_REASONS = 20
"""Rows of the table of drops; the rarer reasons are added up in one."""


PUBLISHED = {
    ("OpenMMReasoner, SFT", "arXiv 2511.16334"): {
        "questions": 103_000,
        "responses": 824_000,
        "verified": 583_000,
        "mixed": 874_357,
    },
    ("MMFineReason", "arXiv 2601.21821"): {
        "distilled": 2_372_320,
        "well-formed": 2_286_030,
        "verified": 1_810_887,
        "not all right": 586_000,
        "none right": 123_000,
    },
    ("MMVistaReason, SFT: kept of each teacher of its cascade", "arXiv 2610.01352"): {
        "all": 527_809,
        "Qwen3.5-9B": 354_886,
        "Qwen3.5-27B": 124_010,
        "Qwen3.5-122B-A10B": 48_913,
    },
}
"""Counts that papers give, by stage."""


def funnel_figures(funnel: Funnel) -> list[Figure]:
    """Returns the figures: this run's funnel, the published ones, and what was dropped."""
    totals = funnel.totals
    ours = _bars("Samples after each stage of this run", list(totals.items()))
    shares = "shares are of its first stage."
    figures = [
        Figure("funnel", "Samples after each stage", f"Of this run; {shares}", ours, table=_by_source(funnel))
    ]
    if teachers := funnel.teachers():
        caption = "A question counts for each teacher that was asked it; right are responses, in form or not."
        rows = [(name, cells) for name, *cells in map(teacher_cells, teachers)]
        table = Table("Questions, tokens and cost by teacher", TEACHER_HEADS, rows)
        figures.append(Figure("funnel-teachers", "Teachers", caption, table=table))
    for number, ((name, paper), counts) in enumerate(PUBLISHED.items()):
        chart = _bars(f"Samples after each stage of {name}", list(counts.items()))
        figures.append(Figure(f"funnel-published-{number}", name, f"As published ({paper}); {shares}", chart))
    drops = [
        (f"{stage}: {reason}", count)
        for stage, reasons in funnel.dropped().items()
        for reason, count in reasons.items()
    ]
    if drops:
        caption = "By stage and reason, all sources together."
        figures.append(Figure("funnel-drops", "Dropped samples", caption, table=_drops(drops)))
    return figures


def _bars(label: str, counts: Sequence[tuple[str, int]]) -> Markup:
    first = counts[0][1]
    shares = ((name, count, f" ({count / first:.0%})" if first else "") for name, count in counts)
    return draw_bars(label, [(name, count, f"{count:,}{share}") for name, count, share in shares])


def _by_source(funnel: Funnel) -> Table | None:
    """Returns a table of sources by stage, when there are several sources."""
    stages, sources = list(funnel.totals), list(dict.fromkeys(row.source for row in funnel.rows))
    if len(sources) < 2:
        return None
    counts = {(row.source, row.stage): f"{row.count:,}" for row in funnel.rows}
    rows = [(source, [counts.get((source, stage), "–") for stage in stages]) for source in sources]
    return Table("Samples by source and stage", ["source", *stages], rows)


def _drops(drops: Sequence[tuple[str, int]]) -> Table:
    """Returns a table of the most frequent drops, in their order; the others are added up."""
    shown = sorted(drops, key=lambda drop: -drop[1])[:MAX_REASONS]
    rows = [(name, [f"{count:,}"]) for name, count in drops if (name, count) in shown]
    rest = sum(count for _, count in drops) - sum(count for _, count in shown)
    rows += [("rarer reasons", [f"{rest:,}"])] if rest else []
    return Table("Drops by stage and reason", ["stage and reason", "dropped"], rows)
