"""`omr compare EVAL EVAL ...`: evaluations against the first of them, as a table and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.tables import text_table
from launch.report.charts import Interval, draw_intervals
from launch.report.compare import name_runs
from launch.report.evaluations.cards import Gallery, Shown, draw_ids, make_cards
from launch.report.evaluations.tokens import Dot, draw_tokens, interval_of
from launch.report.page import Figure, Section, Table, write_page
from rl.evaluation.intervals import Difference
from rl.results.compare import BenchmarkComparison, Comparison, Evaluations, compare_evaluations
from rl.results.stored import load_evaluations

EXAMPLES = 6
"""Questions of each benchmark that are shown for each direction in which they turned."""
HEAD = ("", "questions", "before", "after", "difference", "gained", "lost", "McNemar p", "tokens")


def compare_folders(folders: Sequence[Path], seed: int) -> tuple[list[Evaluations], list[Comparison]]:
    """Returns the evaluations of the folders, and the comparisons of each of the others with the first.

    Raises:
        ValueError: there is only one; a folder is given twice or is no evaluation; as compare_evaluations().
    """
    if len(folders) < 2:
        raise ValueError(f"{folders[0]} is one evaluation; give the one to compare it with, too")
    names = name_runs(folders)
    evaluations: list[Evaluations] = [load_evaluations(folder) for folder in folders]
    comparisons = [
        compare_evaluations(evaluations[0], other, (names[0], name), seed=seed)
        for other, name in zip(evaluations[1:], names[1:], strict=True)
    ]
    return evaluations, comparisons


def describe_comparison(found: Comparison) -> str:
    """Returns the comparison as a text for the console."""
    lines = [f"{found.after} against {found.before}:", text_table(HEAD, [[n, *c] for n, c in _rows(found)])]
    if found.mean:
        lines.append(f"mean over {len(found.benchmarks)} benchmarks: {_points(found.mean)} points")
    return "\n".join([*lines, *list_notes(found)])


def list_notes(found: Comparison) -> list[str]:
    """Returns what is left out, and the settings that differ."""
    notes = [*found.notes]
    for name, each in found.benchmarks.items():
        if each.only_before or each.only_after:
            notes.append(
                f"{name}: left out are {each.only_before:,} questions of {found.before} alone and "
                f"{each.only_after:,} of {found.after} alone."
            )
        if each.other_settings:
            notes.append(
                f"{name}: {found.before} and {found.after} differ in {'; '.join(each.other_settings)}."
            )
    for side, names in ((found.before, found.only_before), (found.after, found.only_after)):
        if names:
            notes.append(f"Only {side} has {', '.join(names)}.")
    return notes


def write_page_of(
    evaluations: Sequence[Evaluations], comparisons: Sequence[Comparison], out: Path, seed: int
) -> Path:
    """Writes the page and returns its path; equal evaluations and seeds give equal bytes."""
    sections = [_accuracy(comparisons), *map(_differences, comparisons), draw_tokens(_list_dots(comparisons))]
    galleries = [
        gallery
        for other, found in zip(evaluations[1:], comparisons, strict=True)
        for gallery in _list_galleries(evaluations[0], other, found, seed)
    ]
    titles = [each.title for each in (*sections, *galleries)]
    notes = [note for found in comparisons for note in list_notes(found)]
    return write_page(
        out,
        "evaluation.html",
        title=f"{comparisons[0].before} · comparison",
        eyebrow="comparison of evaluations",
        name=f"{len(evaluations)} evaluations",
        lead=" ".join(map(_summarize, comparisons)),
        tiles=[],
        titles=titles,
        notes=list(dict.fromkeys(notes)),
        sections=sections,
        galleries=galleries,
        facts=[],
    )


def _summarize(found: Comparison) -> str:
    """Returns the difference in a sentence, and whether it excludes zero."""
    difference = found.mean or next(iter(found.benchmarks.values())).difference
    low, high = difference.ci95
    where = (
        f"in the mean over {len(found.benchmarks)} benchmarks"
        if found.mean
        else f"on {next(iter(found.benchmarks))}"
    )
    verdict = "which excludes zero" if low > 0 or high < 0 else "which contains zero: no difference is shown"
    return f"{found.after} less {found.before} is {_points(difference)} points {where}, {verdict}."


def _accuracy(comparisons: Sequence[Comparison]) -> Section:
    """Returns the accuracies of all evaluations by benchmark, each over the questions that it shares with the first."""
    names = list(dict.fromkeys(name for found in comparisons for name in found.benchmarks))
    rows: list[tuple[str, Sequence[Interval | None]]] = []
    for name in names:
        each = [found.benchmarks.get(name) for found in comparisons]
        first = next(one for one in each if one)
        rows.append(
            (name, [interval_of(first.before), *(interval_of(one.after) if one else None for one in each)])
        )
    keys = [comparisons[0].before, *(found.after for found in comparisons)]
    chart = draw_intervals("Accuracy by benchmark, with 95% intervals", rows)
    figure = Figure("accuracy", "Accuracy", "Bars are 95% intervals.", chart, keys=keys)
    return Section("Accuracy", "Of the questions that both sides asked.", [figure])


def _list_dots(comparisons: Sequence[Comparison]) -> dict[str, list[Dot]]:
    """Returns what is drawn by benchmark: the first evaluation once, as the first of the others sees it."""
    dots = dict[str, list[Dot]]()
    for found in comparisons:
        for name, each in found.benchmarks.items():
            drawn = dots.setdefault(name, [(found.before, each.tokens_before, each.before)])
            drawn.append((found.after, each.tokens_after, each.after))
    return dots


def _differences(found: Comparison) -> Section:
    rows = [*_rows(found)]
    if found.mean:
        rows.append(("mean over benchmarks", ["", "", "", _points(found.mean), "", "", "", ""]))
    table = Table("Differences", HEAD, rows)
    intro = (
        "Differences are in points, paired by question, with 95% intervals of a bootstrap over questions, or over "
        "groups of questions that count as one. McNemar's p is exact and two-sided, and not corrected for several "
        "comparisons."
    )
    title = f"{found.after} against {found.before}"
    return Section(title, intro, [Figure(f"difference-{found.after}", "", "", table=table)])


def _rows(found: Comparison) -> list[tuple[str, list[str]]]:
    return [(f"{name} {each.metric}", _cells(each)) for name, each in found.benchmarks.items()]


def _cells(each: BenchmarkComparison) -> list[str]:
    questions = f"{each.questions:,}"
    if each.units < each.questions:
        questions += f" in {each.units:,} groups"
    return [
        questions,
        f"{each.before.accuracy:.1%}",
        f"{each.after.accuracy:.1%}",
        _points(each.difference),
        str(len(each.gained)),
        str(len(each.lost)),
        f"{each.mcnemar.p:.2g}" if each.mcnemar else "–",
        f"{each.tokens_before:,.0f} to {each.tokens_after:,.0f}",
    ]


def _list_galleries(before: Evaluations, after: Evaluations, found: Comparison, seed: int) -> list[Gallery]:
    """Returns questions that turned right, and questions that turned wrong."""
    galleries = []
    for title, pick in (("turned right", lambda each: each.gained), ("turned wrong", lambda each: each.lost)):
        cards = []
        for name, each in found.benchmarks.items():
            old = before[name] if name in before else next(iter(before.values()))
            shown: Mapping[str, Shown] = {
                key: [(found.before, old.questions[key][0]), (found.after, after[name].questions[key][0])]
                for key in draw_ids(pick(each), EXAMPLES, seed)
            }
            cards += make_cards(after[name], shown)
        if cards:
            intro = f"Up to {EXAMPLES} of each benchmark, drawn with seed {seed}; the first response of each side."
            galleries.append(Gallery(f"{found.after} {title}", intro, cards))
    return galleries


def _points(difference: Difference) -> str:
    low, high = (f"{100 * bound:+.1f}" for bound in difference.ci95)
    return f"{100 * difference.value:+.1f} [{low}, {high}]".replace("-", "−")
