"""`omr report EVAL`: an evaluation's accuracy, failures with examples, tokens and budgets, as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.report.charts import draw_bars, draw_intervals
from launch.report.evaluations.cards import Gallery, draw_ids, make_cards
from launch.report.evaluations.points import Series, draw_points
from launch.report.evaluations.tokens import draw_tokens, interval_of
from launch.report.page import Figure, Section, write_page
from rl.evaluation.intervals import Score
from rl.evaluation.summary import Records
from rl.results.budgets import Sweep
from rl.results.compare import Evaluations
from rl.results.stored import StoredEvaluation, mean_tokens
from rl.results.units import choose_metric
from rl.rewards.failures import count_failures, sort_failure

EXAMPLES = 4
"""Responses of each category that are shown of each benchmark."""
WORDS = {
    "not_asked": ("could not be asked", "The question is bad: its image or its text cannot be used."),
    "truncated": ("truncated", "Cut off at the token limit."),
    "not_checked": ("not checked", "The checker or the judge came to no verdict."),
    "hedged": ("hedged", "Several different answers, alternatives, or a refusal to answer."),
    "misread": (
        "misread",
        "The reference is stated, but another answer, or none, was read: look at the checker first.",
    ),
    "no_answer": ("no answer", "No answer could be read from the response."),
    "wrong": ("wrong", "One answer was read, and it is another than the reference."),
}


def write_evaluation_page(
    folder: Path, evaluations: Evaluations, sweeps: Mapping[str, Sweep], notes: Sequence[str], seed: int
) -> Path:
    """Writes folder/report.html and returns its path; equal evaluations and seeds give equal bytes."""
    more: list[str] = []
    scores = {
        name: choose_metric([each], more).score(each.questions, seed) for name, each in evaluations.items()
    }
    dots = {
        name: [(folder.resolve().name, mean_tokens(each.list_responses()), scores[name])]
        for name, each in evaluations.items()
    }
    sections = [_accuracy(scores), _failures(evaluations), draw_tokens(dots)]
    if sweeps:
        sections.append(_budgets(sweeps))
    galleries = _list_galleries(evaluations, seed)
    return write_page(
        folder / "report.html",
        "evaluation.html",
        title=f"{folder.resolve().name} · evaluation",
        eyebrow="evaluation",
        name=folder.resolve().name,
        lead=" ".join(_describe(name, each, scores[name]) for name, each in evaluations.items()),
        tiles=[],
        titles=[each.title for each in (*sections, *galleries)],
        notes=[*dict.fromkeys([*notes, *more])],
        sections=sections,
        galleries=galleries,
        facts=[],
    )


def _describe(name: str, evaluation: StoredEvaluation, score: Score) -> str:
    low, high = score.ci95
    return (
        f"{name}: {score.accuracy:.1%} (95% CI {100 * low:.1f} to {100 * high:.1f}) of {len(evaluation.questions):,} "
        f"questions, {mean_tokens(evaluation.list_responses()):,.0f} tokens a response."
    )


def _accuracy(scores: Mapping[str, Score]) -> Section:
    rows = [(name, [interval_of(score)]) for name, score in scores.items()]
    chart = draw_intervals("Accuracy by benchmark, with 95% intervals", rows)
    figure = Figure("accuracy", "Accuracy", "The first number of each benchmark's metric.", chart)
    return Section("Accuracy", "Bars are 95% intervals.", [figure])


def _failures(evaluations: Evaluations) -> Section:
    figures = []
    for name, evaluation in evaluations.items():
        counts = count_failures(record for records in evaluation.questions.values() for record in records)
        responses, questions = len(evaluation.list_responses()), len(evaluation.questions)
        wholes = dict.fromkeys(counts, responses) | {"not_asked": questions}
        bars = [
            (WORDS[key][0], count, f"{count:,} ({count / wholes[key]:.1%})") for key, count in counts.items()
        ]
        if bars:
            caption = f"Of {responses:,} responses, those that are not right."
            if bad := counts.get("not_asked"):
                caption += f" {bad:,} of {questions:,} questions could not be asked, and have no response."
            figures.append(Figure(f"failures-{name}", name, caption, draw_bars(f"Failures, {name}", bars)))
    intro = "Each response that is not right is in the first category that holds, in this order."
    return Section("Failures", intro if figures else "None.", figures)


def _budgets(sweeps: Mapping[str, Sweep]) -> Section:
    figures = []
    for name, sweep in sweeps.items():
        points = tuple((float(point.budget), interval_of(point.score)) for point in sweep.points)
        chart = draw_points(
            f"Accuracy by token limit, {name}", [Series(name=sweep.metric, points=points)], "token limit"
        )
        note = (
            f"{sweep.inexact:,} of {sweep.responses:,} responses may be cut some tokens off."
            if sweep.inexact
            else ""
        )
        figures.append(Figure(f"budgets-{name}", name, "Accuracy, 95% interval.", chart, note=note))
    intro = (
        "Responses cut at each limit, and their answers read again; the last point is the evaluation itself."
    )
    return Section("Reasoning budgets", intro, figures)


def _list_galleries(evaluations: Evaluations, seed: int) -> list[Gallery]:
    galleries = []
    for category, (title, meaning) in WORDS.items():
        cards: list[Mapping[str, object]] = []
        for evaluation in evaluations.values():
            failed = _failed_by_id(evaluation, category)
            chosen = draw_ids(list(failed), EXAMPLES, seed)
            cards += make_cards(evaluation, {name: [("", failed[name][0])] for name in chosen})
        if cards:
            intro = f"{meaning} Up to {EXAMPLES} of each benchmark, drawn with seed {seed}."
            galleries.append(Gallery(title.capitalize(), intro, cards))
    return galleries


def _failed_by_id(evaluation: StoredEvaluation, category: str) -> dict[str, Records]:
    """Returns the responses of a category to each question that has one."""
    found = {
        name: [record for record in records if sort_failure(record) == category]
        for name, records in evaluation.questions.items()
    }
    return {name: records for name, records in found.items() if records}
