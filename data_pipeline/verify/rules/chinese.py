"""Writes answers in Chinese as the other rules read them.

>>> rewrite_chinese("故选:C"), rewrite_chinese("答案是12"), rewrite_chinese("三分之二"), rewrite_chinese("十二厘米")
('C', '12', '2/3', '12厘米')
"""

from __future__ import annotations

import re

from data_pipeline.verify.rules.units import read_unit

_DIGITS = dict(zip("零〇一二两三四五六七八九", (0, 0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
_SMALL, _LARGE = {"十": 10, "百": 100, "千": 1_000}, {"万": 10**4, "亿": 10**8}
_NUMERAL = f"[{''.join([*_DIGITS, *_SMALL, *_LARGE])}]+"
_EITHER = rf"(?:{_NUMERAL}|\d+(?:\.\d+)?)"
_SO = r"(?:(?:所以|因此|因而|综上|于是|故|则|即)[,:]? ?)?(?:本题|此题)?"
_STATED = re.compile(rf"{_SO}(?:的?(?:正确|最终|最后)?的?(?:答案|结果|选项)应?该?(?:是|为|选|:)) ?:? ?(.+)")
_CHOSEN = re.compile(
    rf"{_SO}(?:应?该?选(?:择|项)? ?:? ?)?([\[(]?[A-Ja-j](?:(?:, ?|和|与|及| )?[A-J])*[\])]?)(?:选?项)?"
)
_NUMBER = re.compile(
    rf"(?P<sign>负|-)?(?:百分之(?P<percent>{_EITHER})|(?P<bottom>{_EITHER})分之(?P<top>{_EITHER})"
    rf"|(?P<whole>{_EITHER})(?:点(?P<behind>[{''.join(_DIGITS)}]+))?(?P<unit>[^\d点]*))"
)


def rewrite_chinese(text: str) -> str:
    """Removes "the answer is" and "choose" in front of an answer, and writes numerals as digits."""
    if stated := _STATED.fullmatch(text):
        text = stated.group(1).strip()
    if chosen := _CHOSEN.fullmatch(text):
        return re.sub("[和与及]", " and ", chosen.group(1))
    return _write_number(text)


def read_numeral(text: str) -> str:
    """Reads a whole number: 一百零五 is 105, 三万 is 30000, and 二〇二四, digit by digit, is 2024."""
    if text.isascii():
        return text
    if not set(text) - set(_DIGITS):
        return "".join(str(_DIGITS[sign]) for sign in text)
    total = section = digit = 0
    for sign in text:
        if sign in _DIGITS:
            digit = _DIGITS[sign]
        elif sign in _SMALL:
            section, digit = section + (digit or 1) * _SMALL[sign], 0
        else:
            total, section, digit = (total + section + digit) * _LARGE[sign], 0, 0
    return str(total + section + digit)


def _write_number(text: str) -> str:
    """Writes a number that is the whole answer: 百分之二十 as 20%, 负三 as -3; 一样 (the same) stays."""
    found = _NUMBER.fullmatch(text)
    if not found or (found["unit"] and read_unit(found["unit"]) is None):
        return text
    sign = "-" if found["sign"] else ""
    if found["percent"]:
        return f"{sign}{read_numeral(found['percent'])}%"
    if found["top"]:
        return f"{sign}{read_numeral(found['top'])}/{read_numeral(found['bottom'])}"
    behind = f".{read_numeral(found['behind'])}" if found["behind"] else ""
    return f"{sign}{read_numeral(found['whole'])}{behind}{found['unit']}"
