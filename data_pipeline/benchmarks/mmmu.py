"""MMMU and MMMU-Pro: college questions whose texts and options name their images, <image 1> to <image 7>.

Columns as on the cards of lmms-lab/MMMU and of copies of MMMU/MMMU_Pro; prompts are those of
github.com/EvolvingLMMs-Lab/OpenMMReasoner at 67441eb, lmms_eval_tasks/{mmmu,mmmu_pro}. Where a text names its images
in another order than their numbers, or one twice, the released code puts other images there; here each name gets its
own.
"""

from __future__ import annotations

import re

from data_pipeline.benchmarks.benchmark import (
    build_question,
    check_letter,
    check_value,
    list_options,
    read_options,
)
from data_pipeline.errors import column_error
from data_pipeline.sources.rows import Row, label, read_text
from data_pipeline.sources.text_values import is_missing
from data_pipeline.types import IMAGE_MARK, Sample

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DISCIPLINE = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
_IMAGE = re.compile(r"<image (\d+)>")
_ID = re.compile(r"validation_(\w+)_\d+")


def read_mmmu(row: Row) -> Sample:
    """Reads {id, question, options, image_1..7, answer, question_type}; options are a list written as text."""
    found = _ID.fullmatch(read_text(row, "id"))
    if not found:
        raise column_error(
            "id", "such as validation_Accounting_1", row.fields["id"], "give the split validation"
        )
    form, question = label(row, "question_type"), read_text(row, "question")
    check_value("question_type", form, ("multiple-choice", "open"))
    if form == "open":
        answer = _first_reference(read_text(row, "answer"))
    else:
        options = read_options("options", row.fields["options"])
        question, answer = (
            f"{question}\n{list_options(options)}",
            check_letter(read_text(row, "answer"), len(options)),
        )
    return _build(row, question, answer, found[1], question_type=form)


def read_mmmu_pro(row: Row) -> Sample:
    """Reads the subset "standard (10 options)": {id, question, options, image_1..7, answer, subject}."""
    options = read_options("options", row.fields["options"])
    question = f"{read_text(row, 'question')}\n{list_options(options)}"
    return _build(row, question, check_letter(read_text(row, "answer"), len(options)), label(row, "subject"))


def read_mmmu_pro_vision(row: Row) -> Sample:
    """Reads the subset vision: {id, image, options, answer, subject}; the question is in the image."""
    options = read_options("options", row.fields["options"])
    subject = label(row, "subject")
    return build_question(
        row,
        f"{list_options(options)}\n\nAnswer the question in the image.",
        check_letter(read_text(row, "answer"), len(options)),
        images=[row.fields["image"]],
        row_id=label(row, "id"),
        kind=subject,
        notes={"subject": subject, "discipline": _DISCIPLINE.get(subject)},
    )


def _build(row: Row, question: str, answer: str, subject: str, **notes: str) -> Sample:
    images = [_find_image(row, name[1]) for name in _IMAGE.finditer(question)]
    return build_question(
        row,
        _IMAGE.sub(IMAGE_MARK, question),
        answer,
        images=images,
        row_id=label(row, "id"),
        kind=subject,
        notes={"subject": subject, "discipline": _DISCIPLINE.get(subject), **notes},
    )


def _find_image(row: Row, number: str) -> object:
    image = row.fields.get(f"image_{number}")
    if is_missing(image):
        raise column_error(
            f"image_{number}", f"an image, as a text names <image {number}>", image, "drop the row"
        )
    return image


def _first_reference(answer: str) -> str:
    """Returns the answer; of several that are right, written as a list, the first, as the checker reads one."""
    return read_options("answer", answer)[0] if answer.startswith("['") else answer
