r"""The one answer checker: distillation, reward and evaluation ask it whether a response is right.

It has two modes: `strict` is ours (docs/verify.md), `released` reproduces the published reward with its faults. Both
compare text first, which is cheap. What that leaves undecided goes to math-verify, which may not end on a hostile
expression; `pool.VerifyPool` gives each response a deadline, so responses of models are checked there.

>>> check_answer(r"<think>2 * 6 = 12</think><answer>$x = \frac{24}{2}$</answer>", "12")
Verdict(accuracy=1.0, format=1.0, extracted='$x = \\frac{24}{2}$', decided_by='number')
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from data_pipeline.errors import BadSample
from data_pipeline.verify import math, reading, released, strict
from data_pipeline.verify.config import Mode

_MARKS = re.compile(r"</?answer>|\\(?:boxed|text)\s*\{\s*\}|[\s.$*`\"'\u200b\u2060\ufeff]")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The checker's result for one response."""

    accuracy: float  # 1 right, 0 wrong
    format: float  # 1 as asked, 0.8 a solution without the tags, 0 neither
    extracted: str  # the part of the response that was compared
    decided_by: (
        str  # right by exact | choice | number | math | judge; wrong by none | no_reference | timeout | error |
        # judge_failed: the judge gave no clear verdict; in RL and evaluation also the function of reward.correct_by
    )


def check_reference(answer: str) -> None:
    r"""Refuses a reference that says nothing, such as "", "$$" or \boxed{}: an empty answer would be right.

    Raises:
        BadSample: it says nothing; the reason is no_reference.
    """
    if _says_nothing(answer):
        raise BadSample(
            "no_reference", f"answer: {answer!r} is no reference to check against; fill or drop it"
        )


def _says_nothing(answer: str) -> bool:
    return not _MARKS.sub("", answer)


def check_answer(response: str, answer: str, mode: Mode = "strict") -> Verdict:
    """Checks `response` against the reference `answer`, in this process and without a deadline."""
    verdict = check_text(response, answer, mode)
    if not needs_math(verdict):
        return verdict
    return with_outcome(verdict, "math" if is_equal_math(verdict.extracted, answer, mode) else "none")


def check_text(response: str, answer: str, mode: Mode = "strict") -> Verdict:
    """Checks by comparing text only, in linear time; never raises.

    `decided_by` may be "undecided"; without a reference it is "no_reference", and nothing is earned.
    """
    if _says_nothing(answer):
        return Verdict(accuracy=0.0, format=0.0, extracted="", decided_by="no_reference")
    if mode == "released":
        extracted, form = released.read(response)
        decided_by = released.match(extracted, answer)
    else:
        extracted, form = reading.read(response)
        decided_by = strict.match(extracted, answer)
    accuracy = float(decided_by not in ("none", "undecided"))
    return Verdict(accuracy=accuracy, format=form, extracted=extracted, decided_by=decided_by)


def needs_math(verdict: Verdict) -> bool:
    """Returns True where `check_text` left the decision to math-verify."""
    return verdict.decided_by == "undecided"


def is_equal_math(extracted: str, answer: str, mode: Mode = "strict") -> bool:
    """Returns True where math-verify finds two answers equal. May never return."""
    if mode == "released":
        return math.is_equal_with_defaults(extracted, released.trim(answer))
    return strict.match(extracted, answer, math.is_equal_expression) != "none"


def with_outcome(verdict: Verdict, outcome: str) -> Verdict:
    """Returns `verdict` with math-verify's outcome: math (equal), none, timeout or error."""
    return replace(verdict, accuracy=float(outcome == "math"), decided_by=outcome)
