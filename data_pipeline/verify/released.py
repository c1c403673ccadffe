r"""Decides whether an answer is right by the published reward's rules, with their faults, to compare published numbers.

A response is right when its extracted answer equals the reference as text, as a choice letter, or by math-verify
with its defaults. Everything here is linear in the length of the text.

>>> match(extract_answer(r"so it is \boxed{B}"), "B")
'choice'
"""

from __future__ import annotations

import re

CHOICES = "ABCDEFGH"
MIN_OVERLAP = 0.9
"""One text inside the other counts as equal when it is at least this share of the other's length."""
MIN_SOLUTION_LEN = 50
"""Characters past which a response without tags may still earn the partial format score."""

_BRACE = re.compile(r"\\boxed\{|[{}]")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")
_FINAL_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\Z")
_MATH_SIGN = re.compile(r"[=+\-*/()\[\]\\]")
_ANSWER_PHRASE = re.compile(
    r"(?:the )?(?:correct |best )?answer|(?:the )?(?:correct )?(?:option|choice) is|i (?:choose|select|pick)"
)
_CHOICE_FORMS = (("({})",), ("{}.",), ("{}:",), ("{})",), ("{} ",), ("{}-", "{}_", "{}="), ("{}",))
"""How a choice letter may be written, best form first; forms in one group rank the same."""


def read(response: str) -> tuple[str, float]:
    """Returns the answer that a response gives, and its format score."""
    return extract_answer(response), format_score(response)


def match(extracted: str, answer: str) -> str:
    """Returns exact | choice | none, or undecided where math-verify may still find the two equal."""
    answer = trim(answer)
    if len(answer) == 1 and answer in CHOICES:
        return "choice" if _read_choice(extracted) == answer else "none"
    shorter, longer = sorted((extracted, answer), key=len)
    if shorter in longer and len(shorter) >= MIN_OVERLAP * len(longer):
        return "exact"
    # Plain integers that differ as text are different numbers; these are most of the wrong answers.
    are_integers = _INTEGER.fullmatch(extracted) and _INTEGER.fullmatch(answer)
    return "undecided" if extracted and answer and not are_integers else "none"


def extract_answer(response: str) -> str:
    r"""Returns the first `<answer>`, else the last `\boxed{}`, else the number that ends a line, else ""."""
    return trim(_find_answer(response).strip())


def format_score(response: str) -> float:
    r"""Returns 1 for `<think>..</think>..<answer>..</answer>` or a `\boxed{}`, 0.8 for a solution without, else 0."""
    if _has_tags(response) or _find_boxed(response):
        return 1.0
    return 0.8 if is_solution(response) and _find_answer(response) else 0.0


def is_solution(text: str) -> bool:
    """Returns True for a text of some length with a sign of mathematics, which earns the partial format score."""
    return len(text.strip()) > MIN_SOLUTION_LEN and bool(_MATH_SIGN.search(text))


def find_marked_answer(response: str) -> str | None:
    r"""Returns the content of the first `<answer>`, else of the last closed `\boxed{}`; None without either."""
    _, opened, rest = response.partition("<answer>")
    content, closed, _ = rest.partition("</answer>")
    return content if opened and closed else _find_boxed(response) or None


def _find_answer(response: str) -> str:
    marked = find_marked_answer(response)
    return _find_final_number(response) if marked is None else marked


def _find_boxed(text: str) -> str:
    r"""Returns the content of the last `\boxed{}` whose braces balance, or ""."""
    if "\\boxed{" not in text:
        return ""
    last_start, content = -1, ""
    open_braces: list[tuple[int, bool]] = []  # (start of the content, is boxed)
    for match in _BRACE.finditer(text):
        if match.group() != "}":
            open_braces.append((match.end(), match.group() != "{"))
        elif open_braces:
            start, is_boxed = open_braces.pop()
            if is_boxed and start > last_start:
                last_start, content = start, text[start : match.start()]
    return content


def _find_final_number(text: str) -> str:
    """Returns the number at the end of the last line that ends with one (a full stop may follow), or ""."""
    for line in reversed(text.split("\n")):
        if match := _FINAL_NUMBER.search(line.rstrip().removesuffix(".").rstrip()):
            return match.group()
    return ""


def _has_tags(text: str) -> bool:
    # Equal to re.fullmatch(r"<think>.*</think>.*<answer>.*</answer>"), which is cubic on hostile text.
    if not (text.startswith("<think>") and text.endswith("</answer>")):
        return False
    thought_end = text.find("</think>", len("<think>"))
    answer_start = text.find("<answer>", thought_end + len("</think>"))
    return thought_end >= 0 <= answer_start <= len(text) - len("<answer></answer>")


def trim(text: str) -> str:
    """Removes a full stop at the end, and spaces around."""
    return text.removesuffix(".").strip()


def _read_choice(text: str) -> str:
    """Returns the choice letter a text most likely means, or "". A letter at the start wins over all else."""
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    core = text.strip()
    for end in (core[:1], core[-1:]):
        if end and end in CHOICES:
            return end
    padded = f" {text} "
    numbered = [(f"{number}. {letter}", letter) for number, letter in enumerate(CHOICES, 1)]  # 2. B
    by_form = ([(form.format(c), c) for form in forms for c in CHOICES] for forms in _CHOICE_FORMS)
    written = (_first_found(padded, marks) for marks in by_form)
    return _first_found(padded, numbered) or _phrase_choice(padded) or next(filter(None, written), "")


def _phrase_choice(text: str) -> str:
    """Returns the first choice letter after "the answer is" or the like."""
    phrase = _ANSWER_PHRASE.search(text.lower())
    letter = re.compile(f"[{CHOICES}]").search(text, phrase.start()) if phrase else None
    return letter.group() if letter else ""


def _first_found(text: str, marks: list[tuple[str, str]]) -> str:
    """Returns the letter of the mark whose last occurrence comes first."""
    found = [(position, letter) for mark, letter in marks if (position := text.rfind(mark)) >= 0]
    return min(found)[1] if found else ""
