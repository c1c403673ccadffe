"""Sorts the responses that are not right by what went wrong, so that a low score can be told from a bad reading of it.

All is text, compared by the strict rules without math-verify, whatever rules scored the response.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from data_pipeline.verify.choices import read_choice, read_reference
from data_pipeline.verify.notation import normalise
from data_pipeline.verify.reading import Statements, list_statements
from data_pipeline.verify.strict import match
from rl.types import AskedResponse

FAILURES = ("not_asked", "truncated", "not_checked", "hedged", "misread", "no_answer", "wrong")
"""The categories, in the order in which they are tried."""
RIGHT = 0.5
"""Accuracy from which on a response counts as right, and a question by the mean of its responses."""

_NO_VERDICT = ("timeout", "error", "judge_failed", "no_reference")
_OR = re.compile(
    r"\b(?:either|or)\b(?!\s+(?:equal|more|less|fewer|greater|higher|lower|above|below)\b)|或", re.IGNORECASE
)
_REFUSAL = re.compile(
    r"(?:can ?not|can't|could not|unable to|impossible to) (?:be )?(?:determine|answer|tell|say|see|solve|conclude)"
    r"|not (?:enough|sufficient) (?:information|data)|insufficient (?:information|data)|无法(?:确定|判断|回答)",
    re.IGNORECASE,
)


def sort_failure(record: AskedResponse) -> str:
    """Returns the first of FAILURES that holds; "" for a response that is right.

    >>> sort_failure(AskedResponse(id="q", answer="12", response="<answer>12 or 13</answer>", extracted="12 or 13"))
    'hedged'
    """
    if record.fault:
        return "not_asked"
    if record.accuracy >= RIGHT:
        return ""
    if record.finish_reason == "length":
        return "truncated"
    if record.decided_by in _NO_VERDICT:
        return "not_checked"
    stated = list_statements(record.response or "")
    if _is_hedged(stated, record.extracted, record.answer):
        return "hedged"
    if any(_is_same(text, record.answer) for text in (*stated.answers, *stated.boxes, stated.line)):
        return "misread"
    return "wrong" if record.extracted else "no_answer"


def count_failures(records: Iterable[AskedResponse]) -> dict[str, int]:
    """Returns the number of records in each category that has one, in the order of FAILURES."""
    counts = Counter(map(sort_failure, records))
    return {name: counts[name] for name in FAILURES if counts[name]}


def _is_hedged(stated: Statements, extracted: str, answer: str) -> bool:
    """Returns True for several different answers, alternatives, more options than asked for, and refusals to answer."""
    final = stated.answers or stated.boxes
    if any(match(text, final[-1]) == "none" for text in final[:-1]):
        return True
    if _OR.search(extracted) and not _OR.search(answer):
        return True
    wanted = read_reference(normalise(answer))
    if wanted and read_choice(normalise(extracted))[0] > wanted[0]:  # more letters, the right ones among them
        return True
    return bool(_REFUSAL.search(extracted or stated.line)) and not _REFUSAL.search(answer)


def _is_same(text: str, answer: str) -> bool:
    return match(text, answer) not in ("none", "undecided")
