r"""Reads the answer from a response, by the strict rules.

It is the last `<answer>` outside `<think>`, else the last `\boxed{}`, else what the last line states. A response that
is cut off (an open thought, an open tag, an unfinished last line) has no answer. All is linear in its length.

>>> read("<think>6 + 6</think><answer>12</answer>"), read("So x = 12."), read("<think>6 + 6 is")
(('12', 1.0), ('12.', 0.0), ('', 0.0))
"""

from __future__ import annotations

import re
from typing import NamedTuple

from data_pipeline.verify.released import is_solution
from data_pipeline.verify.rules.characters import remove_bold

MAX_LINE_LEN = 1_000
"""Characters past which a last line is not read."""
MAX_STATEMENTS = 32
"""Answers of each form that are listed."""

_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>")
_THINK = re.compile(r"</?think>")
_BRACE = re.compile(r"[{}]")
_BOX = re.compile(r"\\boxed\{")
_STATEMENT = re.compile(r"=|:|：| (?:is|are|equals) |答案[是为]")


def read(response: str) -> tuple[str, float]:
    """Returns the answer that a response gives ("" without one), and its format score."""
    text, is_ended = _strip_end_tokens(response)
    outside, is_open = _remove_thoughts(text)
    if is_open and not outside.endswith("</answer>"):
        return "", 0.0
    opened, closed = outside.rfind("<answer>"), outside.rfind("</answer>")
    start = outside.rfind("<answer>", 0, max(closed, 0))
    if opened > closed or start < 0 <= closed:
        return "", 0.0  # cut off inside of the tag, or never opened
    if start >= 0:
        has_form = text.startswith("<think>") and text.endswith("</answer>") and not is_open
        return outside[start + len("<answer>") : closed].strip(), 1.0 if has_form else 0.8 * is_solution(text)
    if (box := outside.rfind(r"\boxed{")) >= 0:
        content = _read_braces(outside, box + len(r"\boxed{"))
        return content.strip(), float(bool(content))
    stated = _read_last_line(outside, is_ended)
    return stated, 0.8 * bool(stated and is_solution(text))


class Statements(NamedTuple):
    """What a response states outside of its thoughts; read() takes one of these for its answer."""

    answers: tuple[str, ...]  # of <answer>
    boxes: tuple[str, ...]  # of \boxed{}
    line: str  # what the last line states


def list_statements(response: str) -> Statements:
    r"""Returns all answers that a response states, in their order, the last MAX_STATEMENTS of each form.

    A thought that is never closed counts as stated.

    >>> list_statements(r"<think>\boxed{1}</think>\boxed{2} <answer>3</answer> It is 4.")
    Statements(answers=('3',), boxes=('2',), line='4.')
    """
    text, _ = _strip_end_tokens(response)
    outside, _ = _remove_thoughts(text)
    tagged = [piece.rpartition("<answer>") for piece in outside.split("</answer>")[:-1]]
    starts = [found.end() for found in _BOX.finditer(outside)]
    boxes = [_read_braces(outside, start).strip() for start in starts[-MAX_STATEMENTS:]]
    answers = [after.strip() for _, mark, after in tagged if mark]
    last = outside.rpartition("</answer>")[2].strip() or outside
    return Statements(
        answers=tuple(filter(None, answers[-MAX_STATEMENTS:])),
        boxes=tuple(filter(None, boxes)),
        line=_read_last_line(last, True),
    )


def _strip_end_tokens(text: str) -> tuple[str, bool]:
    """Strips spaces and end tokens; the flag tells whether one, or a line break, marks the end."""
    end, is_ended = len(text), False
    while True:
        while end and text[end - 1].isspace():
            is_ended |= text[end - 1] == "\n"
            end -= 1
        token = next((token for token in _END_TOKENS if text.endswith(token, 0, end)), "")
        if not token:
            return text[:end].lstrip(), is_ended
        end, is_ended = end - len(token), True


def _remove_thoughts(text: str) -> tuple[str, bool]:
    """Returns the text outside of thoughts, and whether the last thought is open; an open one counts as outside."""
    pieces, start, is_open = [], 0, False
    for mark in _THINK.finditer(text):
        if mark.group() == "<think>" and not is_open:
            pieces.append(text[start : mark.start()])
            start, is_open = mark.end(), True
        elif mark.group() == "</think>":
            if not is_open:
                pieces.clear()  # this thought began in the prompt
            start, is_open = mark.end(), False
    return (text[start:] if is_open else "".join([*pieces, text[start:]])).strip(), is_open


def _read_braces(text: str, start: int) -> str:
    """Returns the text from `start` to the brace that closes it, or ""."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if not depth:
            return text[start : brace.start()]
    return ""


def _read_last_line(text: str, is_ended: bool) -> str:
    """Returns the answer that the last line states; a response of one line may be the bare answer."""
    line = text[text.rfind("\n") + 1 :].strip()
    if len(line) > MAX_LINE_LEN:
        return ""
    is_whole, line = line == text, remove_bold(line).strip()
    is_finished = is_ended or line.endswith((".", "。")) or "答案" in line or "answer" in line.casefold()
    marks = list(_STATEMENT.finditer(line))
    if marks and is_finished:
        return line[marks[-1].end() :].strip()
    return line if is_whole and not marks else ""
