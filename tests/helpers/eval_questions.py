"""Rows with the published columns of the benchmarks, and the right and a wrong answer to each, drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.sources.rows import Row
from data_pipeline.types import Sample
from data_pipeline.verify.choices import CHOICES
from tests.helpers.benchmarks import ROWS, fill_columns

OPTIONS = ("30 cm", "Both of them", "a circle", "45", "12.5", "the red line", "60", "7", "1/2", "none")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A right and a wrong answer to a question, and each in words."""

    right: str
    wrong: str
    right_text: str
    wrong_text: str


FREE = tuple(
    Answer(right=right, wrong=wrong, right_text=words, wrong_text="not known")
    for right, wrong, words in (
        ("12", "13", "12.0"),
        ("-7", "7", "-7 m"),
        ("0.5", "0.6", r"\frac{1}{2}"),
        (r"\frac{3}{4}", r"\frac{4}{3}", "0.75"),
        (r"2\sqrt{3}", r"3\sqrt{2}", r"\sqrt{12}"),
        ("50%", "5%", "0.5"),
        ("12 cm", "12 m", "12cm"),
        ("3.14", "3.2", "3.14159"),
        ("1,234", "1234.5", "1234"),
        ("x=5", "x=6", "5"),
    )
)
WORDS = tuple(
    Answer(right=right, wrong=wrong, right_text=words, wrong_text="not known")
    for right, wrong, words in (
        ("60", "61", "sixty"),
        ("9.17", "9.71", "9.170"),
        ("Joint-CNN", "Ours", "joint CNN"),
        ("1 by 2", "2 by 1", "1 x 2"),
        ("Not Applicable", "Yes", "N/A"),
        ("red", "blue", "Red"),
    )
)
LETTERS = tuple(
    Answer(right=right, wrong=wrong, right_text=OPTIONS[place], wrong_text=OPTIONS[(place + 1) % 5])
    for place, (right, wrong) in enumerate(zip("ABCDE", "BCDEA", strict=True))
)
LETTERS_OF_TEN = tuple(
    Answer(
        right=CHOICES[n],
        wrong=CHOICES[(n + 1) % 10],
        right_text=OPTIONS[n],
        wrong_text=OPTIONS[(n + 1) % 10],
    )
    for n in range(10)
)
INTEGERS = tuple(
    Answer(right=str(n), wrong=str(n + 1), right_text=f"{n}.0", wrong_text=f"{n + 1}.0")
    for n in range(1, 400, 27)
)
Drawn = tuple[dict[str, Any], Answer]
Draw = random.Random


def _mathvista(draw: Draw, number: int) -> Drawn:
    about = {"pid": str(number), "question": f"Question {number}?"}
    if draw.random() < 0.5:
        answer = draw.choice(LETTERS)
        form = {"question_type": "multi_choice", "answer_type": "text", "answer": answer.right_text}
        return ROWS["mathvista_testmini"][1] | about | form | {"choices": list(OPTIONS[:5])}, answer
    answer = draw.choice([answer for answer in FREE if answer.right in ("12", "-7", "0.5", "3.14")])
    form = {"answer_type": "float", "precision": 1.0} if "." in answer.right else {"answer_type": "integer"}
    return ROWS["mathvista_testmini"][0] | about | form | {"answer": answer.right}, answer


def _mathvision(draw: Draw, number: int) -> Drawn:
    choice = draw.random() < 0.5
    answer = draw.choice(LETTERS if choice else FREE)
    return {
        **ROWS["mathvision_testmini"][0],
        "id": str(number),
        "options": list(OPTIONS[:5]) if choice else [],
        "answer": answer.right,
        "level": draw.randint(1, 5),
        "subject": draw.choice(["angle", "area"]),
    }, answer


def _mathverse(draw: Draw, number: int) -> Drawn:
    choice = draw.random() < 0.5
    answer = draw.choice(LETTERS if choice else FREE)
    return {
        **ROWS["mathverse_testmini"][choice],
        "sample_index": str(number),
        "question_type": "multi-choice" if choice else "free-form",
        "problem_version": draw.choice(["Text Lite", "Vision Only"]),
        "answer": answer.right,
    }, answer


def _dynamath(draw: Draw, number: int) -> Drawn:
    value = draw.randint(1, 999)
    right, wrong = f"{value / 8:.3f}", f"{value / 8 + 1:.3f}"
    answer = Answer(right=right, wrong=wrong, right_text=f"{value / 8:g}", wrong_text=f"{value / 8 + 1:g}")
    place = {"id": str(number // 10), "question_id": f"{number // 10}-{number % 10}"}
    return ROWS["dynamath"][0] | place | {"question": f"What is {value} / 8?", "ground_truth": right}, answer


def _wemath(draw: Draw, number: int) -> Drawn:
    """All problems, as lmms-eval divides by their published number: 360 of two steps, then 165 of three."""
    steps, first = (2, 0) if number < 360 * 3 else (3, 360 * 3)
    problem, part = divmod(number - first, steps + 1)
    key = f"{steps}steps_{part + 1 if part < steps else 'multi'}"
    answer = draw.choice(LETTERS)
    place = {"ID": f"{steps}steps_{problem}", "key": key, "question number": problem}
    return ROWS["wemath_testmini"][0] | place | {"answer": answer.right}, answer


def _logicvista(draw: Draw, number: int) -> Drawn:
    answer = draw.choice(LETTERS[:4])
    return ROWS["logicvista"][0] | {"id": f"v1_{number}", "answer": answer.right}, answer


def _mmmu(draw: Draw, number: int) -> Drawn:
    subject = draw.choice(["Art_Theory", "Finance", "Math"])
    choice = draw.random() < 0.8
    answer = draw.choice(LETTERS if choice else FREE)
    form = {"question_type": "multiple-choice" if choice else "open", "options": str(list(OPTIONS[:5]))}
    about = {"id": f"validation_{subject}_{number}", "question": "What is in <image 1>?"}
    return ROWS["mmmu_val"][0] | form | about | {"answer": answer.right}, answer


def _mmmu_pro(draw: Draw, number: int) -> Drawn:
    answer = draw.choice(LETTERS_OF_TEN)
    about = {
        "id": f"test_{number}",
        "options": str(list(OPTIONS)),
        "subject": draw.choice(["History", "Math"]),
    }
    return ROWS["mmmu_pro_standard"][0] | about | {"answer": answer.right}, answer


def _charxiv(draw: Draw, number: int) -> Drawn:
    answer = draw.choice(WORDS)
    return {
        **ROWS["charxiv_reasoning"][0],
        "original_id": str(number),
        "reasoning_a": answer.right,
        "reasoning_a_type": draw.randint(1, 4),
    }, answer


def _contest(draw: Draw, number: int) -> Drawn:
    answer = draw.choice(INTEGERS)
    return ROWS["aime24"][0] | {"id": number, "answer": answer.right.zfill(3)}, answer


def _gpqa(draw: Draw, number: int) -> Drawn:
    """The letters are known when the options have their places."""
    names = draw.sample(OPTIONS, 4)
    texts = dict(zip(("Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))), names, strict=True))
    row = ROWS["gpqa_diamond"][0] | {"Question": f"Which is number {number}?"} | texts
    letter = read_question("gpqa_diamond", row).answer
    wrong = CHOICES[(CHOICES.index(letter) + 1) % 4]
    return row, Answer(right=letter, wrong=wrong, right_text=names[0], wrong_text=names[1])


@dataclass(frozen=True, kw_only=True)
class Source:
    draw: Callable[[Draw, int], Drawn]
    count: int
    group: int = 1  # questions in a row that are all answered well, or all as it comes


SOURCES = {
    "mathvista_testmini": Source(draw=_mathvista, count=200),
    "mathvision_testmini": Source(draw=_mathvision, count=200),
    "mathverse_testmini": Source(draw=_mathverse, count=200),
    "dynamath": Source(draw=_dynamath, count=400, group=10),
    "wemath_testmini": Source(draw=_wemath, count=1_740, group=3),
    "logicvista": Source(draw=_logicvista, count=200),
    "mmmu_val": Source(draw=_mmmu, count=200),
    "mmmu_pro_standard": Source(draw=_mmmu_pro, count=200),
    "charxiv_reasoning": Source(draw=_charxiv, count=200),
    "aime24": Source(draw=_contest, count=30),
    "gpqa_diamond": Source(draw=_gpqa, count=198),
}


def read_question(name: str, fields: Mapping[str, Any]) -> Sample:
    row = Row(fields=fill_columns(name, dict(fields)), corpus=name, number=0)
    return BENCHMARKS[name].corpus.read(row)
