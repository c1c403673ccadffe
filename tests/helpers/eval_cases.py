"""Questions with the published columns and responses to them, the same for our metrics and for those of lmms-eval.

Everything is drawn by a seed: values are made up, responses are right or wrong, in every form that models write.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from data_pipeline.benchmarks.benchmark import Benchmark
from data_pipeline.benchmarks.metrics import Numbers, QuestionResult
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.types import IMAGE_MARK, Sample
from data_pipeline.verify.check import Verdict, check_answer, check_text
from data_pipeline.verify.config import Mode
from tests.helpers.eval_questions import SOURCES, Answer, Draw, Source, read_question

GOLDEN = Path(__file__).parents[1] / "golden" / "lmms_eval.json"
THOUGHT = "The angles A and B add up to $90$ degrees, so x = 3 + 4."
FORMS = {
    "tags": "<think>{thought}</think><answer>{value}</answer>",
    "tags on lines": "<think>\n{thought}\n</think>\n\n<answer>\n{value}\n</answer>\n",
    "tags without thought": "<answer>{value}</answer>",
    "box in tags": "<think>{thought}</think><answer>\\boxed{{{value}}}</answer>",
    "formula in tags": "<think>{thought}</think><answer>${value}$</answer>",
    "bold in tags": "<think>{thought}</think><answer>**{value}**</answer>",
    "brackets in tags": "<think>{thought}</think><answer>({value})</answer>",
    "sentence in tags": "<think>{thought}</think><answer>The answer is {value}.</answer>",
    "value and words in tags": "<think>{thought}</think><answer>{value}. {text}</answer>",
    "words in tags": "<think>{thought}</think><answer>{text}</answer>",
    "small letters in tags": "<think>{thought}</think><answer>{small}</answer>",
    "two values": "<think>{thought}</think><answer>{value} or {other}</answer>",
    "answered twice": "<think>{thought}</think><answer>{other}</answer> No: <answer>{value}</answer>",
    "box": "{thought} So it is \\boxed{{{value}}}.",
    "two boxes": "{thought} \\boxed{{{other}}}? No, \\boxed{{{value}}}",
    "sentence": "{thought}\nThe answer is {value}.",
    "last line": "{thought}\n\n{value}",
    "cut in the answer": "<think>{thought}</think><answer>{value}",
    "cut in the thought": "<think>{thought} It could be {value}, or",
    "empty tags": "<think>{thought}</think><answer></answer>",
    "nothing": "",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A row as published, with the forms and the texts of the responses to it."""

    row: Mapping[str, Any]
    sample: Sample
    forms: tuple[str, ...]
    responses: tuple[str, ...]


@cache
def draw_questions(name: str, seed: int = 0) -> tuple[Question, ...]:
    return tuple(_draw_questions(BENCHMARKS[name], SOURCES[name], random.Random(f"{seed} {name}")))


def _draw_questions(benchmark: Benchmark, source: Source, draw: Draw) -> Iterator[Question]:
    is_good = False
    for number in range(source.count):
        if number % source.group == 0:
            is_good = draw.random() < 0.5
        row, answer = source.draw(draw, number)
        forms = [_draw_form(draw, is_good) for _ in range(benchmark.n)]
        yield Question(
            row=row,
            sample=read_question(benchmark.name, row),
            forms=tuple(forms),
            responses=tuple(
                _write(answer, form, draw.random() < (0.97 if is_good else 0.6)) for form in forms
            ),
        )


def _draw_form(draw: Draw, is_good: bool) -> str:
    return "tags" if is_good and draw.random() < 0.9 else draw.choice(list(FORMS))


def _write(answer: Answer, form: str, is_right: bool) -> str:
    value, other, text = (
        (answer.right, answer.wrong, answer.right_text)
        if is_right
        else (answer.wrong, answer.right, answer.wrong_text)
    )
    return FORMS[form].format(thought=THOUGHT, value=value, other=other, text=text, small=value.lower())


def check_responses(name: str, mode: Mode, seed: int = 0) -> list[list[Verdict]]:
    """Returns our checker's verdicts on the responses to each question."""
    return [
        [check_answer(response, question.sample.answer, mode) for response in question.responses]
        for question in draw_questions(name, seed)
    ]


def compute_numbers(name: str, accuracies: Sequence[Sequence[float]], seed: int = 0) -> Numbers:
    """Returns our metric's numbers for those accuracies of the responses."""
    return BENCHMARKS[name].metric(
        [
            QuestionResult(metadata=question.sample.metadata, accuracies=tuple(values))
            for question, values in zip(draw_questions(name, seed), accuracies, strict=True)
        ]
    )


OUR_NAMES = {
    "acc_score": "accuracy",
    "avg@8": "avg@8",
    "cov@8": "pass@8",
    "dynamath_average": "average",
    "dynamath_worst": "worst",
    "wemath_loose": "loose",
    "wemath_strict": "strict",
}
"""Our name of a number of lmms-eval."""
PRINTED = 5e-5
"""lmms-eval gives We-Math's scores as percentages of two decimals."""


def mean_format(name: str, seed: int = 0) -> float:
    """Returns what lmms-eval names format_score.

    It takes blanks off the ends of a response first. The published reward does not, and gives nothing for a line break
    behind `</answer>`.
    """
    return fmean(
        fmean(
            check_text(response.strip(), question.sample.answer, "released").format
            for response in question.responses
        )
        for question in draw_questions(name, seed)
    )


def digest(name: str, prompts: Sequence[str]) -> str:
    """Returns a hash of the prompts and of the responses to them."""
    texts = [text for question in draw_questions(name) for text in question.responses]
    return hashlib.sha256("\0".join([*prompts, *texts]).encode()).hexdigest()[:16]


def write_prompt(sample: Sample) -> str:
    """Returns the question; lmms-eval puts images first where the text does not name them, and so do we."""
    return sample.messages[-1].content.removeprefix(IMAGE_MARK).strip()


def reads_words_as_a_letter(reference: str) -> bool:
    """Returns True where lmms-eval takes a reference of words for a choice: it has one of the letters A to H in it.

    "Joint-CNN" asks for a C there, which an answer such as "(Joint-CNN)" gives. The published reward and our checker
    ask for a letter only where the reference is one.
    """
    return len(reference) > 1 and any(letter in reference for letter in "ABCDEFGH")
