r"""Decides whether an answer is right by our own rules; docs/verify.md lists them and how well they do.

Answers of up to MAX_LEN characters are compared as normalised text, part by part: letters, lists, equations, words,
numbers with units. Only expressions are left to math-verify.

>>> match("5 m or 6 m", "x = 5 m"), match("500 cm", "x = 5 m"), match(r"\sqrt{12}", r"2\sqrt{3}")
('none', 'number', 'undecided')
"""

from __future__ import annotations

import re
from collections.abc import Callable

from data_pipeline.verify.choices import read_choice, read_reference
from data_pipeline.verify.notation import (
    ListAnswer,
    normalise,
    read_matrix,
    remove_spaces,
    split_list,
    strip_brackets,
    to_latex,
)
from data_pipeline.verify.quantities import is_same_quantity, read_quantity, shared_decimals
from data_pipeline.verify.rules.times import is_same_time
from data_pipeline.verify.rules.units import split_unit
from data_pipeline.verify.rules.words import is_same_word, is_words, strip_qualifiers, strip_sentence

IsEqual = Callable[[str, str, int | None], bool]
"""Compares two LaTeX expressions; numbers to so many decimals."""

MAX_LEN = 1_000
"""Characters past which an answer is compared as text only; no answer worth comparing is as long."""
MAX_ITEMS = 32
MAX_DEPTH = 3

_NAME = re.compile(
    r"(?:\\angle |\\triangle |angle )?[A-Za-z]{1,5}(?:_(?:\w|\{\w{1,5}\}))?'*(?: ?\([A-Za-z, ]{1,9}\))?"
    r"|\([A-Za-z, ]{3,11}\)|\\[A-Za-z]+(?:_(?:\w|\{\w{1,5}\}))?"
)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|in) ")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    ["sqrt", "sin", "cos", "tan", "cot", "log", "exp", "degrees", "matrix", "pmatrix", "bmatrix", "array"]
)
_MATH = re.compile(r"sin|cos|tan|log|ln|[\d\\^_+*/=<>()-]|^[A-Za-z]{1,2}$")
_APART = re.compile(r"\d[ ~]+(?:by[ ~]+)?\d|:0\d")
_RANK = ("exact", "choice", "number", "math", "undecided")


def match(extracted: str, answer: str, is_equal: IsEqual | None = None) -> str:
    """Returns exact | choice | number | math | none; without `is_equal`, undecided where math-verify must decide."""
    if max(len(extracted), len(answer)) > MAX_LEN:
        return "exact" if extracted.strip() == answer.strip() else "none"
    given, wanted = normalise(extracted), normalise(answer)
    if not given or not wanted:
        return "none"
    reference = read_reference(wanted)
    if not reference:
        return _compare(given, wanted, is_equal, MAX_DEPTH)
    letters, text = read_choice(given)
    if letters or not reference[1]:
        return "choice" if letters == reference[0] else "none"
    return _compare(given, reference[1], is_equal, MAX_DEPTH)


def _compare(given: str, wanted: str, is_equal: IsEqual | None, depth: int) -> str:
    """Compares two normalised texts; lists item by item."""
    if _is_same_text(given, wanted):
        return "exact"
    if not depth:
        return "none"
    given, wanted = strip_qualifiers(strip_sentence(given)), strip_qualifiers(wanted)
    if _is_same_text(given, wanted):
        return "exact"
    if is_words(wanted):
        return "exact" if is_same_word(given, wanted) else "none"
    if (is_same := is_same_time(given, wanted)) is not None:
        return "number" if is_same else "none"  # two times of day rather than two ratios
    if _is_same_number(given, wanted):
        return "number"
    if not (_RELATION.search(given + wanted) or r"\cup" in given + wanted):
        given, wanted = _strip_names(given, wanted)
        if not given:
            return "none"
    return _compare_lists(given, wanted, is_equal, depth)


def _compare_lists(given: str, wanted: str, is_equal: IsEqual | None, depth: int) -> str:
    """Compares lists item by item; the reference decides whether the order counts."""
    ours, theirs = _read_list(given), _read_list(wanted)
    if not ours and not theirs:
        return _compare_single(given, wanted, is_equal)
    if not ours or not theirs:
        items = (ours or theirs or ListAnswer(items=())).items
        if len(items) == 1 and r"\emptyset" not in items[0]:  # a set of one
            return _compare(*((items[0], wanted) if ours else (given, items[0])), is_equal, depth - 1)
        is_interval = len(items) == 2 and _RELATION.search(given + wanted)
        is_computed = r"\begin" in given and r"\begin" in wanted  # 2 times a matrix
        return _compare_expressions(given, wanted, None, is_equal) if is_interval or is_computed else "none"
    if len(ours.items) != len(theirs.items) or not _is_same_brackets(ours.brackets, theirs.brackets):
        return "none"
    is_ordered = _keeps_order(ours, theirs)
    if len(ours.items) > MAX_ITEMS or (ours.has_or and not theirs.has_or and is_ordered):
        return "none"
    if not is_ordered:
        return _match_items(ours.items, theirs.items, is_equal, depth - 1)
    pairs = zip(ours.items, theirs.items, strict=True)
    return _worst([_compare(a, b, is_equal, depth - 1) for a, b in pairs])


def _match_items(
    given: tuple[str, ...], wanted: tuple[str, ...], is_equal: IsEqual | None, depth: int
) -> str:
    """Compares lists in any order: finds an equal item for each, preferring the surest comparison."""
    left, outcomes = list(given), []
    for item in wanted:
        found = [_compare(candidate, item, is_equal, depth) for candidate in left]
        best = min((outcome for outcome in found if outcome != "none"), key=_RANK.index, default="none")
        if best == "none":
            return "none"
        left.pop(found.index(best))
        outcomes.append(best)
    return _worst(outcomes)


def _compare_single(given: str, wanted: str, is_equal: IsEqual | None) -> str:
    """Compares two answers that are no lists: numbers, expressions with and without a unit."""
    given, wanted = strip_brackets(given), strip_brackets(wanted)
    if _is_same_text(given, wanted):
        return "exact"
    ours, theirs = read_quantity(given), read_quantity(wanted)
    if ours and theirs:
        return "number" if is_same_quantity(ours, theirs) else "none"
    given, our_unit = split_unit(given)
    wanted, their_unit = split_unit(wanted)
    if our_unit != their_unit and our_unit.bases and their_unit.bases:
        return "none"
    if _is_same_text(given, wanted):
        return "exact"
    decimals = shared_decimals(read_quantity(given), read_quantity(wanted))
    return _compare_expressions(given, wanted, decimals, is_equal)


def _compare_expressions(given: str, wanted: str, decimals: int | None, is_equal: IsEqual | None) -> str:
    """Leaves two expressions to math-verify, but no prose: it would find numbers in prose."""
    words = set(_PROSE.findall(given)) ^ set(_PROSE.findall(wanted))
    if words - _FUNCTIONS or not (_MATH.search(given) and _MATH.search(wanted)):
        return "none"
    given, wanted = to_latex(given), to_latex(wanted)
    if _APART.search(given) or _APART.search(wanted):
        return "none"  # a parser would multiply the numbers in "3 5" and "2 by 1", and divide 9 by 05 in 9:05
    if is_equal is None:
        return "undecided"
    return "math" if is_equal(given, wanted, decimals) else "none"


def _worst(outcomes: list[str]) -> str:
    return "none" if "none" in outcomes else max(outcomes, key=_RANK.index)


def _strip_names(given: str, wanted: str) -> tuple[str, str]:
    """Removes "x =" from both sides; returns ("", "") where the two name different things."""
    (our_name, ours), (their_name, theirs) = _split_name(given), _split_name(wanted)
    is_point = our_name.startswith("(") or their_name.startswith("(")  # (x, y) = (1, 2)
    if not is_point and (split_list(given) or split_list(wanted)):
        return given, wanted
    if our_name and their_name and our_name != their_name:
        return (given, wanted) if _PROSE.search(given) is None and "=" in given + wanted else ("", "")
    if "=" in wanted and not their_name:
        return given, wanted  # an equation that names nothing
    if "=" in given and not our_name and their_name:
        return given, wanted
    return ours, theirs


def _split_name(text: str) -> tuple[str, str]:
    """Splits "x = 2 + 3 = 5" into ("x", "5"); the name is "" where there is none."""
    first, sign, _ = text.partition("=")
    if not sign:
        return "", text
    before, _, value = text.rpartition("=")
    value = value.strip()
    if _NAME.fullmatch(first.strip()):
        return remove_spaces(first), value
    return "", value if read_quantity(value) and not re.search("[A-Za-z]", before) else text


def _read_list(text: str) -> ListAnswer | None:
    if read_quantity(text) or r"\cup" in text:
        return None
    if text.count(":") > 1:  # 1:2:3
        terms = [read_quantity(term.strip()) for term in text.split(":")]
        values = [term.value for term in terms if term and term.value]
        if len(values) < len(terms):
            return None
        return ListAnswer(items=tuple(str(value / values[0]) for value in values))
    return read_matrix(text) or split_list(text)


def _is_same_brackets(ours: str, theirs: str) -> bool:
    """Returns True where the brackets mean the same; a list without any may be a tuple or a set."""
    return ours == theirs or {ours, theirs} in ({"", "()"}, {"", "{}"})


def _keeps_order(given: ListAnswer, wanted: ListAnswer) -> bool:
    ours, theirs = ([_split_name(item)[0] for item in side.items] for side in (given, wanted))
    if not all(theirs):
        return wanted.is_ordered
    return len(set(theirs)) > 1 and not all(ours)  # where all are named, the names tell which is which


def _is_same_text(given: str, wanted: str) -> bool:
    return remove_spaces(given) == remove_spaces(wanted)


def _is_same_number(given: str, wanted: str) -> bool:
    ours, theirs = read_quantity(given), read_quantity(wanted)
    return bool(ours and theirs and is_same_quantity(ours, theirs))
