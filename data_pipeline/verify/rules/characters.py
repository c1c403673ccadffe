r"""Writes Unicode and shorthand as plain LaTeX, with a look at the neighbours: `2¾` is `2\frac{3}{4}`, not 23/4.

>>> rewrite_characters("6.02×10²³"), brace_roots(rewrite_characters("2√15"))
('6.02\\cdot 10^{23}', '2\\sqrt{15}')
"""

from __future__ import annotations

import re
from unicodedata import normalize

_OPENING, _CLOSING = "([{", ")]}"
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓᵢⱼₖₘₙ"
_PLAIN = str.maketrans(_RAISED + _LOWERED, "0123456789+-=()nixy" + "0123456789+-=()aeoxijkmn")
_SMALL_FRACTION = re.compile(r"([⁰¹²³⁴-⁹]+)[⁄∕/]([₀-₉]+)|(\d+)⁄(\d+)")
_RAISED_INDEX = re.compile(r"(?<![\w)\]}])([⁰¹²³⁴-⁹]+)√")
_RAISED_RUN, _LOWERED_RUN = re.compile(f"[{_RAISED}]+"), re.compile(f"[{_LOWERED}]+")
_OVERLINED = re.compile("(?:\\d\u0305)+")


def _write_parts(top: str, bottom: str) -> str:
    return rf"\frac{{{top}}}{{{bottom}}}"


_CHARACTERS = str.maketrans(
    {
        **{chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)},  # full width
        **{sign: _write_parts(*normalize("NFKD", sign).split("⁄")) for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"},
        "−": "-", "–": "-", "—": "-", "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
        "π": r"\pi ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "∞": r"\infty ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
        "°": " degrees ", "℃": " degrees C", "℉": " degrees F", "∠": r"\angle ", "△": r"\triangle ",
        "，": ", ", "、": ", ", "；": "; ", "。": ". ", "￥": "CNY ", "【": "[", "】": "]", "「": '"', "」": '"',
        "“": '"', "”": '"', "‘": "'", "’": "'", "\0": None, "\u200b": None, "\u2060": None, "\ufeff": None,
    }
)  # fmt: skip
_BOLD = re.compile(r"(?<![\w)\]}])\*\*([^*]+)\*\*")
_STARS = re.compile(r"(?<=[\w)\]}]) ?\*\* ?(?=[\w({\\-])")
_ROOT = re.compile(r"(?:\\sqrt|(?<![\\A-Za-z])sqrt)(?![A-Za-z]) ?(?P<index>\[\d+\])? ?")
_RADICAND = re.compile(r"\d+(?:\.\d+)?|[A-Za-z]|\\frac\{[^{}]*\}\{[^{}]*\}|\\[A-Za-z]+")
_SCRIPT = re.compile(r"\^ ?(-?\d+(?:\.\d+)?|-?[A-Za-z])|_ ?([A-Za-z0-9])")
_GROUPED = re.compile(r"(?<!\d )(?<![\w.])[1-9]\d{0,2}(?: \d{3})+(?! ?[\d/])(?! ?\\frac)")
_APOSTROPHE = re.compile(r"(?<=\d)'(?=\d{3}(?!\d))")
_CYCLE = re.compile(
    r"(\d+\.\d*)(?:\\(?:overline|bar) ?\{(\d+)\}|\((\d+)\)|\\dot ?\{?(\d)\}?(?:(\d*)\\dot ?\{?(\d)\}?)?)"
)


def rewrite_characters(text: str) -> str:
    """Writes other characters as ASCII: `Ａ５` as A5, `x²³` as x^{23}, `a₁` as a_{1}, `³√8` as the third root."""
    text = _SMALL_FRACTION.sub(
        lambda run: _write_parts(*(p.translate(_PLAIN) for p in run.groups() if p)), text
    )
    text = _RAISED_INDEX.sub(lambda run: rf"\sqrt[{run.group(1).translate(_PLAIN)}] ", text)
    text = _RAISED_RUN.sub(lambda run: f"^{{{run.group().translate(_PLAIN)}}}", text)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{run.group().translate(_PLAIN)}}}", text)
    text = _OVERLINED.sub(lambda run: rf"\overline{{{run.group()[::2]}}}", text)
    return text.translate(_CHARACTERS)


def remove_bold(text: str) -> str:
    """Removes the stars of bold text, and writes those of a power as a power: `**2**` is 2, `2**3` is 2^3."""
    return _STARS.sub("^", _BOLD.sub(r"\1", text)).replace("**", "") if "**" in text else text


def brace_roots(text: str) -> str:
    r"""Puts braces around what stands below a root: `\sqrt16`, sqrt(16) and `\sqrt 16` are all `\sqrt{16}`."""
    position = 0
    while root := _ROOT.search(text, position):
        inner, end = _read_radicand(text, root.end())
        head = rf"\sqrt{root['index'] or ''}{{"
        position = root.start() + len(head)  # what stands below may hold roots, too
        text = f"{text[: root.start()]}{head}{inner}}}{text[end:]}" if inner else text
    return text


def brace_scripts(text: str) -> str:
    """Puts braces around exponents and indices: x^23 is x^{23} and x_1 is x_{1}."""
    return _SCRIPT.sub(lambda run: f"^{{{run[1]}}}" if run[1] else f"_{{{run[2]}}}", text)


def join_digits(text: str) -> str:
    """Joins digits in groups of three: 98 765 and 98'765 are 98765; 98 76 and 2 100/3 stay."""
    return _APOSTROPHE.sub("", _GROUPED.sub(lambda run: run.group().replace(" ", ""), text))


def write_cycles(text: str) -> str:
    r"""Writes repeating decimals in one way: `0.\bar{3}`, `0.\dot{3}` and 0.(3) as `0.\overline{3}`."""
    return _CYCLE.sub(
        lambda run: rf"{run[1]}\overline{{{''.join(part or '' for part in run.groups()[1:])}}}", text
    )


def closing(text: str, opening: int) -> int:
    """Returns the position where the bracket at `opening` closes, or the length of the text."""
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] in _OPENING) - (text[position] in _CLOSING)
        if not depth:
            return position
    return len(text)


def _read_radicand(text: str, start: int) -> tuple[str, int]:
    """Returns what stands below a root, and where it ends; "" where nothing follows."""
    if text[start : start + 1] in ("(", "{"):
        end = closing(text, start)
        return text[start + 1 : end], end + 1
    found = _RADICAND.match(text, start)
    return (found.group(), found.end()) if found else ("", start)
