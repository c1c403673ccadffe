"""Reads choice letters, A to J: those that a reference asks for, and those that an answer names."""

from __future__ import annotations

import re

CHOICES = "ABCDEFGHIJ"
Choice = tuple[frozenset[str], str]
"""The letters, and the text of the option where it is given."""

_ALONE = re.compile(r"[(\[{]?([A-Ja-j])[)\]}]?[.:]?")
_WITH_TEXT = re.compile(r"(?:[(\[]([A-Ja-j])[)\]][.:]?|([A-Ja-j])[).:]|([A-J]) -) ?(.+)")
_SEVERAL = re.compile(r"\(?[A-J]\)?(?: ?(?:,|and|&|, ?and) ?\(?[A-J]\)?)+")
_TOGETHER = re.compile(r"[A-J]{2,}")
_MARK = re.compile(r"[(\[][A-Ja-j][)\]]")
_LETTER = re.compile(r"[A-J]")
_NAMED = re.compile(
    r"(?:^|[,.;:] ?|i think )(?:(?:so|thus|therefore|hence),? )?"
    r"(?:(?:the )?(?:(?:final|correct|best|right) )*(?:answer|option|choice)(?: is(?! not)|:)?|it is|it's"
    r"|i (?:choose|select|pick))"
    r"(?: option| choice|:)* ?(?:\(([a-j])\)|([a-j])(?![a-z']))",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(r"([A-J]) is (?:the )?(?:correct|right|answer)")
_OTHERS = re.compile(
    r"[(\[]([A-J])[)\]]|(?<![A-Za-z])([A-J])[).:](?= |\Z)|(?:answer|option|choice) is ([A-J])(?![A-Za-z'])"
    r"|(?:^|\W)or (?:maybe |perhaps |possibly |option |choice )*\(?([A-J])(?![A-Za-z'])"
    r"|([A-J]) ?/ ?[A-J](?![A-Za-z])|(?<![A-Za-z])([A-J]) or "
)
_ABOUT_OTHERS = re.compile(r"both|neither|all|none|either", re.IGNORECASE)


def read_reference(text: str) -> Choice | None:
    """Returns the letters that a reference asks for, or None where it is no choice: "AC" or "B. 12 cm"."""
    if letters := _read_letters(text):
        return letters, ""
    found = _WITH_TEXT.fullmatch(text)
    if not found or _MARK.search(found.group(4)):  # (a) 3 (b) 4 are two answers
        return None
    return frozenset(_first(found).upper()), found.group(4)


def read_choice(text: str) -> Choice:
    """Returns the letters that an answer names, and the text behind them; none of "A triangle" or "A or B"."""
    if letters := _read_letters(text):
        return letters, ""
    found = _WITH_TEXT.fullmatch(text)
    letters, behind = (frozenset(_first(found).upper()), found.group(4)) if found else (_find_named(text), "")
    others = {next(filter(None, groups)) for groups in _OTHERS.findall(text)} - letters
    if not letters or (others and not _ABOUT_OTHERS.match(behind)):
        return frozenset(), ""
    return letters, behind


def strip_letter(text: str) -> str:
    """Returns the text behind the letter of "C. 12"; other texts as they are."""
    found = _WITH_TEXT.fullmatch(text)
    return found.group(4) if found and _first(found).isupper() else text


def _find_named(text: str) -> frozenset[str]:
    """Returns the letters behind "the answer is" or in front of "is correct"."""
    named = _NAMED.search(text) or _IS_RIGHT.match(text)
    if not named or (_first(named) == "a" and named.end() < len(text)):  # an article
        return frozenset()
    return _read_letters(text[named.start(named.lastindex or 1) :]) or frozenset(_first(named).upper())


def _read_letters(text: str) -> frozenset[str]:
    """Returns the letters of a text that holds nothing else: "(b)", "[B]", "B,", "A and C", "ACD"."""
    text = text.rstrip(",; ")
    if alone := _ALONE.fullmatch(text):
        return frozenset(alone.group(1).upper())
    if text[:1] == "[" and text[-1:] == "]":
        text = text[1:-1].strip()
    if _SEVERAL.fullmatch(text):
        return frozenset(_LETTER.findall(text))
    # "ACD" lists letters in their order; other capitals are a word or a name.
    is_listed = _TOGETHER.fullmatch(text) and list(text) == sorted(set(text))
    return frozenset(text) if is_listed else frozenset()


def _first(found: re.Match[str]) -> str:
    return next(group for group in found.groups()[:3] if group)
