"""The report's section about the data: the run's funnel as a chart, beside the published ones, and what was dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from data_pipeline.curate.funnel import STAGES, Funnel
from launch.report.charts import value_bars

MAX_REASONS = 20
"""Rows of the table of drops; what is rarer is added up in one."""


@dataclass(frozen=True, kw_only=True)
class PublishedFunnel:
    """Counts that a paper gives, by stage."""

    name: str
    source: str
    counts: tuple[tuple[str, int], ...]


PUBLISHED = (
    PublishedFunnel(
        name="OpenMMReasoner, SFT",
        source="arXiv 2511.16334",
        counts=(
            ("questions", 103_000),
            ("answers asked", 824_000),
            ("verified", 583_000),
            ("mixed", 874_357),
        ),
    ),
    PublishedFunnel(
        name="MMFineReason",
        source="arXiv 2601.21821",
        counts=(
            ("distilled", 2_372_320),
            ("well-formed", 2_286_030),
            ("verified", 1_810_887),
            ("not all right", 586_000),
            ("none right", 123_000),
        ),
    ),
)


def funnel_charts(funnel: Funnel) -> list[tuple[str, str, str, str]]:
    """(name, title, caption, content) of each figure: this run's funnel, the published ones, and the drops."""
    totals = funnel.totals
    ours = [(stage, totals[stage]) for stage in STAGES if stage in totals]
    figures = [
        (
            "funnel",
            "Samples after each stage",
            "Of this run; shares are of its first stage.",
            _bars("Samples after each stage of this run", ours) + _by_source(funnel),
        )
    ]
    for number, published in enumerate(PUBLISHED):
        caption = f"As published ({published.source}); shares are of its first stage."
        chart = _bars(f"Samples after each stage of {published.name}", published.counts)
        figures.append((f"funnel-published-{number}", published.name, caption, chart))
    drops = _drops(funnel)
    if drops:
        figures.append(
            ("funnel-drops", "What was dropped", "By stage and reason, all sources together.", drops)
        )
    return figures


def _bars(label: str, counts: Sequence[tuple[str, int]]) -> str:
    first = counts[0][1]
    return value_bars(label, [(name, count, _counted(count, first)) for name, count in counts])


def _by_source(funnel: Funnel) -> str:
    """A table of sources by stage, when there are several sources."""
    stages = [stage for stage in STAGES if stage in funnel.totals]
    sources = list(dict.fromkeys(row.source for row in funnel.rows))
    if len(sources) < 2:
        return ""
    counts = {(row.source, row.stage): row.count for row in funnel.rows}
    rows = [
        (source, [f"{counts[source, stage]:,}" if (source, stage) in counts else "–" for stage in stages])
        for source in sources
    ]
    return _table("Samples by source and stage", ["source", *stages], rows)


def _drops(funnel: Funnel) -> str:
    by_stage = funnel.dropped()
    found = [(stage, reason, count) for stage in by_stage for reason, count in by_stage[stage].items()]
    shown = sorted(found, key=lambda drop: -drop[2])[:MAX_REASONS]
    rows = [
        (f"{stage}: {reason}", [f"{count:,}"])
        for stage, reason, count in found
        if (stage, reason, count) in shown
    ]
    rest = sum(count for _, _, count in found) - sum(count for _, _, count in shown)
    if rest:
        rows.append(("rarer reasons", [f"{rest:,}"]))
    return _table("Drops by stage and reason", ["stage and reason", "dropped"], rows) if rows else ""


def _table(label: str, head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    lines = (
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    box = f'class="wide" tabindex="0" role="region" aria-label="{escape(label)}"'
    return f"<div {box}><table><tr>{titles}</tr>{''.join(lines)}</table></div>"


def _counted(count: int, first: int) -> str:
    return f"{count:,} ({count / first:.0%})" if first else f"{count:,}"
