"""AIME, AMC and GPQA-Diamond: questions without images.

AIME: columns and prompt of github.com/EvolvingLMMs-Lab/OpenMMReasoner at 67441eb, lmms_eval_tasks/aime: the problem
alone, 8 responses at temperature 1. AMC23: columns as evaluations read math-ai/amc23; the recipe validates on it but
publishes no evaluation, so it is asked as AIME. GPQA: columns and prompt of lmms_eval_tasks/gpqa; there the choices are
shuffled without a seed, the reference is "(B)", and texts in brackets are removed, also those of chemical names.
"""

from __future__ import annotations

from data_pipeline.benchmarks.benchmark import build_question, list_options, shuffle_options
from data_pipeline.errors import column_error
from data_pipeline.sources.rows import Row, label, read_text
from data_pipeline.types import Sample

GPQA_SEED = 42
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def read_contest(row: Row) -> Sample:
    """Reads {problem or question, answer, id}: answers are integers, also written 023 or 27.0."""
    column = "problem" if "problem" in row.fields else "question"
    given = read_text(row, "answer")
    whole = given.removesuffix(".0")
    if not whole.removeprefix("-").isdecimal():
        raise column_error("answer", "an integer", given, "drop the row, or give the right dataset")
    return build_question(row, read_text(row, column), str(int(whole)), row_id=label(row, "id"))


def read_gpqa(row: Row) -> Sample:
    """Reads {Question, Correct Answer, Incorrect Answer 1..3, Record ID, Subdomain, High-level domain}."""
    question, right = read_text(row, "Question"), read_text(row, "Correct Answer")
    wrong = [read_text(row, name) for name in _WRONG]
    options, letter = shuffle_options(right, wrong, f"{GPQA_SEED} {question}")
    choices = list_options(options, "({}) {}").replace("\n(", " (")
    return build_question(
        row,
        f"Question: {question}\nChoices:\n{choices}",
        letter,
        row_id=label(row, "Record ID"),
        kind=label(row, "High-level domain"),
        notes={"domain": row.fields.get("High-level domain"), "subdomain": row.fields.get("Subdomain")},
    )
