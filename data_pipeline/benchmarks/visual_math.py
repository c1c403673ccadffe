"""MathVista, MathVision, MathVerse and LogicVista: one image and one question in a row.

Prompts are those of OpenMMReasoner's evaluation (github.com/EvolvingLMMs-Lab/OpenMMReasoner at 67441eb,
lmms_eval_tasks/{mathvista,mathvision,mathverse,logicvista}), from whose code the columns of MathVista and MathVerse are
known. Those of MathVision are on its dataset card, those of LogicVista in evaluations that list them.
"""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.benchmarks.benchmark import (
    build_question,
    check_letter,
    check_value,
    list_options,
    read_options,
)
from data_pipeline.errors import column_error
from data_pipeline.sources.rows import Row, label, read_text
from data_pipeline.sources.text_values import is_missing, read_value
from data_pipeline.types import Sample
from data_pipeline.verify.choices import CHOICES

_LETTER_HINT = "answer the question and provide the correct option letter, e.g., A, B, C, D"
_VALUE_HINT = "answer the question requiring {} and provide the final {}, e.g., {}"
_VALUES = {
    ("integer", 0): ("an integer answer", "value", "1, 2, 3"),
    ("float", 1): ("a floating-point number with one decimal place", "value", "1.2, 1.3, 1.4"),
    ("float", 2): ("a floating-point number with two decimal places", "value", "1.23, 1.34, 1.45"),
    ("list", 0): ("a Python list as an answer", "list", "[1, 2, 3], [1.2, 1.3, 1.4]"),
}
_MATHVISION_PROMPT = r'Please solve the problem step by step and put your answer in one "\boxed{}".'


def read_mathvista(row: Row) -> Sample:
    """Reads {pid, question, choices, unit, precision, answer, question_type, answer_type, decoded_image, metadata}."""
    about = _read_about(row)
    check_value("metadata.split", about.get("split", "testmini"), ("testmini",), "give that split")
    form, kind = label(row, "question_type"), label(row, "answer_type")
    check_value("question_type", form, ("multi_choice", "free_form"))
    answer, parts = read_text(row, "answer"), [f"Question: {read_text(row, 'question')}"]
    if unit := label(row, "unit"):
        parts[0] += f" (Unit: {unit})"
    if choices := row.fields.get("choices"):
        options = read_options("choices", choices)
        parts += ["Choices:", list_options(options, "({}) {}")]
    if form == "multi_choice":
        check_value("answer", answer, options := read_options("choices", choices))
        hint, answer = _LETTER_HINT, CHOICES[options.index(answer)]
    else:
        precision = row.fields.get("precision")
        value = (kind, int(float(read_value("precision", precision))) if kind == "float" else 0)
        check_value("answer_type and precision", value, list(_VALUES))
        hint = _VALUE_HINT.format(*_VALUES[value])
    parts.append(f"Hint: Please {hint}, at the end.")
    names = ("category", "context", "grade", "source", "skills")
    return build_question(
        row,
        "\n".join(parts),
        answer,
        images=[row.fields["decoded_image"]],
        row_id=label(row, "pid"),
        kind=read_value("task", about.get("task", "")),
        notes={"question_type": form, "answer_type": kind} | {name: about.get(name) for name in names},
    )


def read_mathvision(row: Row) -> Sample:
    """Reads {id, question, options, decoded_image, answer, level, subject}; <image1> in a text stays text."""
    question, answer = read_text(row, "question"), read_text(row, "answer")
    if options := read_options("options", row.fields["options"] or []):
        check_letter(answer, len(options))
        question += f"\nChoices: {list_options(options)}"
    return build_question(
        row,
        _MATHVISION_PROMPT + question,
        answer,
        images=[row.fields["decoded_image"]],
        row_id=label(row, "id"),
        kind=label(row, "subject"),
        notes={"subject": row.fields["subject"], "level": row.fields["level"]},
    )


def read_mathverse(row: Row) -> Sample:
    """Reads {sample_index, problem_index, problem_version, question_type, query_wo, image, answer, metadata}."""
    image, version = row.fields["image"], label(row, "problem_version")
    form = label(row, "question_type")
    check_value("question_type", form, ("multi-choice", "free-form"))
    if is_missing(image) and version != "Text Only":
        raise column_error("image", f"an image, as the version is {version!r}", image, "drop the row")
    about = _read_about(row)
    return build_question(
        row,
        read_text(row, "query_wo"),
        read_text(row, "answer"),
        images=[] if is_missing(image) else [image],
        row_id=label(row, "sample_index"),
        kind=version,
        notes={
            "problem_version": version,
            "problem_index": row.fields["problem_index"],
            "question_type": form,
            "subfield": about.get("subfield"),
        },
    )


def read_logicvista(row: Row) -> Sample:
    """Reads {question, answer, image, skill}; answers are letters, of a few questions several."""
    return build_question(
        row,
        read_text(row, "question"),
        read_text(row, "answer"),
        images=[row.fields["image"]],
        row_id=label(row, "id"),
        kind=label(row, "skill"),
        notes={"skill": row.fields["skill"], "broad_capability": row.fields.get("broad_capability")},
    )


def _read_about(row: Row) -> Mapping[str, object]:
    about = row.fields["metadata"]
    if not isinstance(about, Mapping):
        raise column_error("metadata", "an object", about, "drop the row")
    return about
