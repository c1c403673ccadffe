"""Sets the scores of a run beside the paper's rows: scores.md, and the table that the command prints."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from data_pipeline.benchmarks.groups import TWELVE_COLUMNS
from data_pipeline.tables import text_table
from launch.published.openmmreasoner import BASE, COLDSTART, MAIN, RL, TEXT
from launch.published.table import REPRODUCED
from rl.evaluation.intervals import Interval, Score
from rl.evaluation.scores import BenchmarkScores, RunScores

PAPER = (BASE, COLDSTART, RL)
"""Rows of the printed table: the model before the recipe, after its SFT, after its RL. scores.md has all."""
TABLES = (MAIN, TEXT)
MARK, NONE = "*", "-"
INCOMPLETE = "incomplete_groups"
"""The one number of a metric that is a count, and no share."""
HEAD = ("metric", "score", "95 % interval", "questions", "tokens", "truncated", "format", "bad")

Row = Sequence[str]


def write_markdown(scores: RunScores) -> str:
    """Returns scores.md: the run's row beside the paper's, its numbers, then each benchmark in detail."""
    head, rows = _beside_paper(scores)
    numbers = [_number_row(name, each) for name, each in scores.benchmarks.items()]
    parts = [
        f"# {scores.model}",
        _markdown(head, rows),
        *describe_notes(scores),
        "## Numbers",
        _markdown(("benchmark", *HEAD), numbers),
        *(part for name, each in scores.benchmarks.items() for part in _detail(name, each)),
    ]
    return "\n\n".join(parts) + "\n"


def print_table(scores: RunScores) -> str:
    """Returns a line for each benchmark, with the paper's rows to its right, and the notes."""
    rows = [
        (*_number_row(name, each), *(_paper_cell(row, name) for row in PAPER))
        for name, each in scores.benchmarks.items()
    ]
    table = text_table(("benchmark", *HEAD, "base", "ColdStart", "RL"), rows, left=2)
    return "\n".join([table, *describe_notes(scores)])


def describe_notes(scores: RunScores) -> list[str]:
    """Returns what a reader of the table must know: where a number is not the published one, and what * marks."""
    found = scores.benchmarks
    marked = [f"{name}: {', '.join(reasons)}" for name, each in found.items() if (reasons := _reasons(each))]
    sources = "; ".join(table.source for table in TABLES)
    notes = [
        f"base, ColdStart and RL are {', '.join(PAPER)} ({sources}), one run each, without intervals; {REPRODUCED}: "
        "measured by the paper's authors, where the model's own give no number."
    ]
    if marked:
        notes.append(f"Marked {MARK}, as it is not a published number: {'; '.join(marked)}.")
    if any(not each.use_judge for each in found.values()):
        notes.append(
            "The answer checker alone decides. The paper also asks a judge about what its rules find wrong, so that "
            "its numbers may be higher: reward.use_judge."
        )
    return notes


def average_columns(scores: RunScores) -> float | None:
    """Returns the mean of the paper's twelve columns, in per cent; None unless all are published numbers."""
    found = [scores.benchmarks.get(name) for name in TWELVE_COLUMNS]
    if not all(each and not _reasons(each) for each in found):
        return None
    return 100 * fmean(each.value for each in found if each)


def _beside_paper(scores: RunScores) -> tuple[Row, list[Row]]:
    """Returns a table of a row a model and a column a benchmark."""
    names = list(scores.benchmarks)
    means = {row: MAIN.mean(row) for row in MAIN.rows}
    rows: list[Row] = [
        [row, *(_paper_cell(row, name) for name in names), f"{mean:.1f}" if mean else NONE]
        for row, mean in means.items()
    ]
    own, mean = [_marked(scores.benchmarks[name]) for name in names], average_columns(scores)
    rows.append([f"**{scores.model}**", *own, NONE if mean is None else f"{mean:.1f}"])
    columns = [f"{name} ({scores.benchmarks[name].metric})" for name in names]
    return ["", *columns, "mean of the 12 columns"], rows


def _number_row(name: str, found: BenchmarkScores) -> Row:
    return (
        name,
        found.metric,
        _marked(found),
        _interval(found.ci95),
        f"{found.questions:,}",
        f"{found.tokens:,.0f}",
        f"{found.truncated:.1%}",
        f"{found.format:.1%}",
        f"{sum(found.bad_questions.values())}",
    )


def _reasons(found: BenchmarkScores) -> list[str]:
    """Returns why a score is not the published number."""
    reasons = list[str]()
    if not found.is_whole:
        reasons.append(f"{found.questions:,} of {found.published_questions:,} questions")
    if found.dropped:
        reasons.append(f"{found.dropped} rows refused by the import")
    reasons += [f"{name} {each.used:g} for {each.published:g}" for name, each in found.overrides.items()]
    if groups := found.numbers.get(INCOMPLETE):
        reasons.append(f"{groups:.0f} incomplete groups")
    return reasons


def _detail(name: str, found: BenchmarkScores) -> list[str]:
    """Returns a benchmark's other numbers, and its first one by category."""
    shares = {metric: value for metric, value in found.numbers.items() if metric != INCOMPLETE}
    others = [(metric, f"{100 * value:.1f}") for metric, value in shares.items()]
    parts = [f"## {name}"]
    if len(others) > 1:
        parts.append(_markdown(("number", "per cent"), others))
    for key, scores in found.by.items():
        parts.append(
            _markdown((key, found.metric, "95 % interval", "count"), [*map(_score_row, scores.items())])
        )
    if found.dropped:
        parts.append(f"{found.dropped} rows of the dataset were refused by the import, and were not asked.")
    if found.bad_questions:
        listed = ", ".join(f"{reason} {count}" for reason, count in found.bad_questions.items())
        parts.append(f"Questions that could not be asked, which count as wrong: {listed}.")
    return parts if len(parts) > 1 else []


def _score_row(item: tuple[str, Score]) -> Row:
    value, score = item
    return value, f"{100 * score.accuracy:.1f}", _interval(score.ci95), f"{score.count:,}"


def _paper_cell(row: str, name: str) -> str:
    """Returns the paper's score of a model on a benchmark as it prints it; a dash where it has none."""
    for table in TABLES:
        found = table.rows.get(row)
        if found and name in found.scores:
            return f"{found.scores[name]:.1f}{REPRODUCED if name in found.reproduced else ''}"
    return NONE


def _marked(found: BenchmarkScores) -> str:
    return f"{100 * found.value:.1f}{'' if not _reasons(found) else MARK}"


def _interval(ci95: Interval | None) -> str:
    return f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}" if ci95 else NONE


def _markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
