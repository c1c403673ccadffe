"""CharXiv: questions about charts of papers; one that needs reasoning and four that describe, for each chart.

Columns as listed by evaluations that read princeton-nlp/CharXiv; instructions, the choice among them and the places of
subplots are those of github.com/princeton-nlp/CharXiv at 7ebe88f (src/{reasoning,descriptive}_utils.py).
OpenMMReasoner's evaluation departs from it in two ways that its code shows. It chooses the instruction by
`reasoning_q_source` (who wrote the question) instead of `reasoning_a_type`. And it repeats the 1,000 charts four times
and takes the question `index % 4`, which asks one question of a chart four times instead of all four.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data_pipeline.benchmarks.benchmark import build_question, check_value
from data_pipeline.files import read_json
from data_pipeline.sources.readers import Fields
from data_pipeline.sources.rows import Row, label, read_text
from data_pipeline.sources.text_values import is_missing, read_value
from data_pipeline.types import Sample

PROMPTS = Path(__file__).with_name("charxiv_prompts.json")
ANSWER_TYPES = {1: "text in chart", 2: "text in general", 3: "number in chart", 4: "number in general"}
NUM_DESCRIPTIVE = 4
_ABOUT_LAYOUT = (18, 19)
"""Descriptive questions about the whole figure, which name no subplot."""


def read_reasoning(row: Row) -> Sample:
    """Reads {image, reasoning_q, reasoning_a, reasoning_a_type}."""
    answer, kind = read_text(row, "reasoning_a"), _read_number(row, "reasoning_a_type")
    check_value("reasoning_a_type", kind, list(ANSWER_TYPES))
    _, _, decimals = answer.partition(".")
    number = f"a number with {len(decimals)} decimal places" if decimals else "an exact integer"
    asked = _prompt("reasoning", kind)
    question = asked.format(read_text(row, "reasoning_q"), f"* Your final answer must be {number}.")
    return build_question(
        row,
        question,
        answer,
        images=[row.fields["image"]],
        row_id=label(row, "original_id"),
        kind=ANSWER_TYPES[kind],
        notes={"answer_type": ANSWER_TYPES[kind], "category": row.fields.get("category")},
    )


def split_descriptive(chart: Fields) -> Iterator[Fields]:
    """Yields the four descriptive questions of a chart."""
    for number in range(1, NUM_DESCRIPTIVE + 1):
        yield {**chart, "descriptive_number": number}


def read_descriptive(row: Row) -> Sample:
    """Reads question `descriptive_number` of {image, descriptive_q1..4, descriptive_a1..4, subplot_row, _col, _loc}."""
    number = _read_number(row, "descriptive_number")
    asked = _read_number(row, f"descriptive_q{number}")
    check_value(f"descriptive_q{number}", asked, range(1, 20))
    place = "" if asked in _ABOUT_LAYOUT else f"For {_place(row)}, "
    chart = label(row, "original_id")
    return build_question(
        row,
        _prompt("descriptive", asked).format(place),
        read_text(row, f"descriptive_a{number}"),
        images=[row.fields["image"]],
        row_id=f"{chart}/{number}",
        kind=f"question {asked}",
        notes={"question": asked, "chart": chart, "category": row.fields.get("category")},
    )


def _place(row: Row) -> str:
    if not is_missing(row.fields["subplot_loc"]):
        return read_text(row, "subplot_loc")
    line, column = (_read_number(row, name) for name in ("subplot_row", "subplot_col"))
    return f"the subplot at row {line} and column {column}" if line else "the current plot"


def _read_number(row: Row, column: str) -> int:
    text = read_value(column, row.fields[column])
    return int(float(text)) if text.replace(".", "", 1).isdigit() else -1


@cache
def _read_prompts() -> dict[str, dict[str, list[str]]]:
    return read_json(PROMPTS)


def _prompt(part: str, number: int) -> str:
    return "\n    ".join(_read_prompts()[part][str(number)])
