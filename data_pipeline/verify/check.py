"""The one answer checker: distillation, reward and evaluation all ask it whether a response is right.

It has two modes. `strict` is ours (`verify_strict`, docs/verify.md); `released` reproduces the published
reward, faults included (`verify_released`). Both first compare text, which is cheap; what that leaves undecided
is asked of math-verify, which may run for ever on a hostile expression. So what models wrote goes through
`verify_pool`, which gives each answer a deadline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_pipeline.verify import math as verify_math
from data_pipeline.verify import reading as verify_reading
from data_pipeline.verify import released as verify_released
from data_pipeline.verify import strict as verify_strict
from data_pipeline.verify.config import Mode


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the checker found in one response."""

    accuracy: float  # 1 right, 0 wrong
    format: float  # 1 as asked, 0.8 a solution without the tags, 0 neither
    extracted: str  # what was taken as the answer
    decided_by: (
        str  # what found it right: exact | choice | number | math | judge; else none | timeout | error
    )


def check_answer(response: str, answer: str, mode: Mode = "strict") -> Verdict:
    """Check `response` against the reference `answer`, in this process and without a deadline."""
    verdict = check_text(response, answer, mode)
    if not needs_math(verdict):
        return verdict
    return after_math(verdict, "math" if is_equal_math(verdict.extracted, answer, mode) else "none")


def check_text(response: str, answer: str, mode: Mode = "strict") -> Verdict:
    """The part of the check that compares text: cheap, linear, never raises. It may end undecided."""
    if mode == "released":
        extracted, form = verify_released.read(response)
        decided_by = verify_released.match(extracted, answer)
    else:
        extracted, form = verify_reading.read(response)
        decided_by = verify_strict.match(extracted, answer)
    return Verdict(
        accuracy=float(decided_by not in ("none", "undecided")),
        format=form,
        extracted=extracted,
        decided_by=decided_by,
    )


def needs_math(verdict: Verdict) -> bool:
    """Whether math-verify may still find a response right that `check_text` did not."""
    return verdict.decided_by == "undecided"


def is_equal_math(extracted: str, answer: str, mode: Mode = "strict") -> bool:
    """Whether math-verify holds two answers for the same. May take for ever."""
    if mode == "released":
        return verify_math.is_equal_as_it_comes(extracted, verify_released.trim(answer))
    return verify_strict.match(extracted, answer, verify_math.is_equal_expression) != "none"


def after_math(verdict: Verdict, outcome: str) -> Verdict:
    """`verdict` once math-verify was asked: it said math (equal) or none, or died of timeout or error."""
    return replace(verdict, accuracy=float(outcome == "math"), decided_by=outcome)
