"""Our rules of what is right: docs/verify.md lists them with what they score on labelled answers.

Answers of up to MAX_LEN characters are compared as plain texts, part by part: letters, lists, equations, words, numbers
with units. Only expressions are left to math-verify.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from data_pipeline.verify.choices import read_choice, read_reference, without_letter
from data_pipeline.verify.notation import Listing, as_latex, listing, plain, squeezed, unwrapped
from data_pipeline.verify.numbers import (
    is_same_quantity,
    read_quantity,
    rounding,
)
from data_pipeline.verify.units import split_unit

Ask = Callable[[str, str, int | None], bool]
"""Whether two expressions are equal, numbers to so many decimals."""

MAX_LEN = 1_000
"""Characters past which an answer is compared as text only; no answer worth comparing is as long."""
MAX_ITEMS = 32
MAX_DEPTH = 3

_STATEMENT = re.compile(
    r"(?:(?:so|thus|therefore|hence|then),? )?"
    r"(?:the [a-z ]{1,60}?|it|this|that|there|answer|result|final answer) ?(?: is| are| equals| was|:)"
    r"(?: (?:about|approximately|therefore))? (?!not )(.+)",
    re.IGNORECASE,
)
_ABOUT = re.compile(r"(?:about |approximately |roughly |\\approx |≈ ?|~ ?|= ?)+")
_REASON = re.compile(r",? (?:because|since) |, not ")
_NAME = re.compile(
    r"(?:\\angle |\\triangle |angle )?[A-Za-z]{1,5}(?:_(?:\w|\{\w{1,5}\}))?'*(?: ?\([A-Za-z, ]{1,9}\))?"
    r"|\([A-Za-z, ]{3,11}\)|\\[A-Za-z]+(?:_(?:\w|\{\w{1,5}\}))?"
)
_MEMBER = re.compile(
    r"[A-Za-z] ?\\in (?=[\[({\\])|[A-Z] ?(?=\([^()]+,[^()]+\)\Z)"
)  # x in a set, a point's name
_ORDINAL = re.compile(r"(\d)(?:st|nd|rd|th)")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|in) ")
_WORDS = re.compile(r"[^\W\d_][^\W\d_]+(?:[ '-][^\W\d_]+)*|[^\W\d_](?:[ '-][^\W\d_]+)+")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    ("sqrt", "sin", "cos", "tan", "cot", "log", "exp", "inf", "infinity", "infty", "degrees")
)
_MATH = re.compile(r"sin|cos|tan|log|ln|[\d\\^_+*/=<>()-]|^[A-Za-z]{1,2}$")
_NUMERALS = dict(
    zero=0, one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, eleven=11, twelve=12
)  # fmt: skip
_CLOCK = re.compile(r"\d?\d:[0-5]\d")
_YES_NO = ("yes", "no", "true", "false")
_RANK = ("exact", "choice", "number", "math", "undecided")


def match(extracted: str, answer: str, ask: Ask | None = None) -> str:
    """exact | choice | number | math | none; without `ask`, undecided where math-verify must be asked."""
    if max(len(extracted), len(answer)) > MAX_LEN:
        return "exact" if extracted.strip() == answer.strip() else "none"
    given, wanted = plain(extracted), plain(answer)
    if not given or not wanted:
        return "none"
    reference = read_reference(wanted)
    if not reference:
        return _compare(given, wanted, ask, MAX_DEPTH)
    letters, text = read_choice(given)
    if letters or not reference[1]:
        return "choice" if letters == reference[0] else "none"
    return _compare(given, reference[1], ask, MAX_DEPTH)


def _compare(given: str, wanted: str, ask: Ask | None, depth: int) -> str:
    """Compare two plain texts; lists part by part."""
    if squeezed(given) == squeezed(wanted):
        return "exact"
    if not depth:
        return "none"
    given, wanted = _bare(_unsaid(given)), _bare(wanted)
    if squeezed(given) == squeezed(wanted):
        return "exact"
    if _is_words(wanted):
        return "exact" if _is_same_word(given, wanted) else "none"
    if _CLOCK.fullmatch(given) and _CLOCK.fullmatch(wanted):
        return "none"  # two times of day rather than two ratios
    ours, theirs = read_quantity(given), read_quantity(wanted)
    if ours and theirs and is_same_quantity(ours, theirs):
        return "number"
    if not (_RELATION.search(given + wanted) or r"\cup" in given + wanted):
        given, wanted = _values(given, wanted)
        if not given:
            return "none"
    return _as_lists(given, wanted, ask, depth)


def _as_lists(given: str, wanted: str, ask: Ask | None, depth: int) -> str:
    """Compare item by item what is a list; the reference says whether the order counts."""
    ours, theirs = _listing(given), _listing(wanted)
    if not ours and not theirs:
        return _compare_single(given, wanted, ask)
    if not ours or not theirs:
        items = (ours or theirs or Listing(items=())).items
        if len(items) == 1:  # a set of one
            return _compare(*((items[0], wanted) if ours else (given, items[0])), ask, depth - 1)
        is_interval = len(items) == 2 and _RELATION.search(given + wanted)
        return _ask(given, wanted, None, ask) if is_interval else "none"
    if len(ours.items) != len(theirs.items) or not _go_together(ours.brackets, theirs.brackets):
        return "none"
    if len(ours.items) > MAX_ITEMS or (ours.has_or and not theirs.has_or and _keeps_order(ours, theirs)):
        return "none"
    pairs = zip(ours.items, theirs.items, strict=True)
    if _keeps_order(ours, theirs):
        return _worst([_compare(a, b, ask, depth - 1) for a, b in pairs])
    return _pair_up(ours.items, theirs.items, ask, depth - 1)


def _pair_up(given: tuple[str, ...], wanted: tuple[str, ...], ask: Ask | None, depth: int) -> str:
    """Find a partner for each item, the surest first."""
    left, outcomes = list(given), []
    for item in wanted:
        found = [_compare(candidate, item, ask, depth) for candidate in left]
        best = min((outcome for outcome in found if outcome != "none"), key=_RANK.index, default="none")
        if best == "none":
            return "none"
        left.pop(found.index(best))
        outcomes.append(best)
    return _worst(outcomes)


def _compare_single(given: str, wanted: str, ask: Ask | None) -> str:
    """Compare two answers that are no lists: numbers, expressions with and without a unit."""
    given, wanted = unwrapped(given), unwrapped(wanted)
    if squeezed(given) == squeezed(wanted):
        return "exact"
    ours, theirs = read_quantity(given), read_quantity(wanted)
    if ours and theirs:
        return "number" if is_same_quantity(ours, theirs) else "none"
    given, our_unit = split_unit(given)
    wanted, their_unit = split_unit(wanted)
    if our_unit != their_unit and our_unit.bases and their_unit.bases:
        return "none"
    if squeezed(given) == squeezed(wanted):
        return "exact"
    return _ask(given, wanted, rounding(read_quantity(given), read_quantity(wanted)), ask)


def _ask(given: str, wanted: str, decimals: int | None, ask: Ask | None) -> str:
    """Leave two expressions to math-verify, but no prose: it would find something in it."""
    words = set(_PROSE.findall(given)) ^ set(_PROSE.findall(wanted))
    if words - _FUNCTIONS or not (_MATH.search(given) and _MATH.search(wanted)):
        return "none"
    if ask is None:
        return "undecided"
    return "math" if ask(as_latex(given), as_latex(wanted), decimals) else "none"


def _worst(outcomes: list[str]) -> str:
    return "none" if "none" in outcomes else max(outcomes, key=_RANK.index)


def _unsaid(text: str) -> str:
    """Without the words around an answer: "The area is 5 because ..." says 5."""
    if said := _STATEMENT.fullmatch(text):
        text = said.group(1)
    if reason := _REASON.search(text):
        text = text[: reason.start()]
    return without_letter(text.strip())


def _bare(text: str) -> str:
    """Without "about", "x in", a point's name or the ending of an ordinal; numerals as digits."""
    if found := _ABOUT.match(text):
        text = text[found.end() :]
    if found := _MEMBER.match(text):
        text = text[found.end() :]
    if text[-2:] in ("st", "nd", "rd", "th"):
        text = _ORDINAL.sub(r"\1", text)
    return str(_NUMERALS.get(text.strip().casefold(), text.strip()))


def _values(given: str, wanted: str) -> tuple[str, str]:
    """What stands behind "x =" on both sides; "" for both where different things are named."""
    if listing(given) or listing(wanted):
        named = [_sides(text)[0].startswith("(") for text in (given, wanted)]
        if not any(named):
            return given, wanted
    (our_name, ours), (their_name, theirs) = _sides(given), _sides(wanted)
    if our_name and their_name and our_name != their_name:
        return (given, wanted) if _PROSE.search(given) is None and "=" in given + wanted else ("", "")
    if "=" in wanted and not their_name:
        return given, wanted  # an equation that names nothing
    if "=" in given and not our_name and their_name:
        return given, wanted
    return ours, theirs


def _sides(text: str) -> tuple[str, str]:
    """(name, value) of "x = 2 + 3 = 5"; the name is "" where there is none."""
    first, sign, _ = text.partition("=")
    if not sign:
        return "", text
    value = text.rpartition("=")[2].strip()
    if _NAME.fullmatch(first.strip()):
        return squeezed(first), value
    return "", value if read_quantity(value) and not re.search("[A-Za-z]", text.rpartition("=")[0]) else text


def _listing(text: str) -> Listing | None:
    if read_quantity(text) or r"\cup" in text:
        return None
    if text.count(":") > 1:  # 1:2:3
        terms = [read_quantity(term.strip()) for term in text.split(":")]
        values = [term.value for term in terms if term and term.value]
        return (
            Listing(items=tuple(str(value / values[0]) for value in values))
            if len(values) == len(terms)
            else None
        )
    return listing(text)


def _go_together(ours: str, theirs: str) -> bool:
    return ours == theirs or (not ours and theirs in ("()", "{}")) or (not theirs and ours in ("()", "{}"))


def _keeps_order(given: Listing, wanted: Listing) -> bool:
    ours, theirs = ([_sides(item)[0] for item in side.items] for side in (given, wanted))
    if not all(theirs):
        return wanted.is_ordered
    return len(set(theirs)) > 1 and not all(ours)  # where all are named, the names say which is which


def _is_words(text: str) -> bool:
    return bool(_WORDS.fullmatch(text)) and " and " not in text and " or " not in text


def _is_same_word(given: str, wanted: str) -> bool:
    given, wanted = _folded(given), _folded(wanted)
    if wanted in _YES_NO:
        given, _, rest = (part.strip() for part in given.partition(","))
        if rest.startswith(_YES_NO):
            return False
    return given == wanted


def _folded(text: str) -> str:
    words = text.casefold().replace("-", " ").replace('"', "").split()
    return " ".join(words[1:] if words[:1] in (["the"], ["a"], ["an"]) else words)
