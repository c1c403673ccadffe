"""Compares words, and removes those around a value.

>>> strip_sentence("The area is 5 because 2 + 3 = 5"), is_same_word("Yes, it is", "yes")
('5', True)
"""

from __future__ import annotations

import re

from data_pipeline.verify.choices import strip_letter

_STATEMENT = re.compile(
    r"(?:(?:so|thus|therefore|hence|then),? )?"
    r"(?:the [a-z ]{1,60}?|it|this|that|there|answer|result|final answer) ?(?: is| are| equals| was|:)"
    r"(?: (?:about|approximately|therefore))? (?!not )(.+)",
    re.IGNORECASE,
)
_ABOUT = re.compile(r"(?:about |approximately |roughly |\\approx |≈ ?|~ ?|= ?)+")
_REASON = re.compile(r",? (?:because|since) |, not ")
# "x \in" before a set, or a point's name before its coordinates
_MEMBER = re.compile(r"[A-Za-z] ?\\in (?=[\[({\\])|[A-Z] ?(?=\([^()]+,[^()]+\)\Z)")
_ORDINAL = re.compile(r"(\d)(?:st|nd|rd|th)")
_WORDS = re.compile(r"[^\W\d_][^\W\d_]+(?:[ '-][^\W\d_]+)*|[^\W\d_](?:[ '-][^\W\d_]+)+")
_NUMERALS = dict(
    zero=0, one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, eleven=11, twelve=12
)  # fmt: skip
_YES_NO = ("yes", "no", "true", "false")


def strip_sentence(text: str) -> str:
    """Removes the words around an answer: "The area is 5 because ..." gives "5"."""
    if statement := _STATEMENT.fullmatch(text):
        text = statement.group(1)
    if reason := _REASON.search(text):
        text = text[: reason.start()]
    return strip_letter(text.strip())


def strip_qualifiers(text: str) -> str:
    r"""Reduces "about 5", `x \in [0, 1]`, "P(1, 2)", "5th" and "five" to the value."""
    for pattern in (_ABOUT, _MEMBER):
        if found := pattern.match(text):
            text = text[found.end() :]
    if text[-2:] in ("st", "nd", "rd", "th"):
        text = _ORDINAL.sub(r"\1", text)
    return str(_NUMERALS.get(text.strip().casefold(), text.strip()))


def is_words(text: str) -> bool:
    return bool(_WORDS.fullmatch(text)) and " and " not in text and " or " not in text


def is_same_word(given: str, wanted: str) -> bool:
    """Compares without case, quotes, hyphens and leading article; "Yes, it is" equals "yes"."""
    given, wanted = _fold_words(given), _fold_words(wanted)
    if wanted in _YES_NO:
        given, _, rest = (part.strip() for part in given.partition(","))
        if rest.startswith(_YES_NO):
            return False
    return given == wanted


def _fold_words(text: str) -> str:
    words = text.casefold().replace("-", " ").replace('"', "").split()
    return " ".join(words[1:] if words[:1] in (["the"], ["a"], ["an"]) else words)
