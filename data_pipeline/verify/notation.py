r"""Normalises the LaTeX, Markdown and typography of an answer, and splits answers that are lists.

>>> normalise(r"$\dfrac12\,\text{cm}$")
'\\frac{1}{2} cm'
>>> split_list(r"\{3, 4\}")
ListAnswer(items=('3', '4'), brackets='{}', is_ordered=False, has_or=False)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_pipeline.verify.rules import characters
from data_pipeline.verify.rules.chinese import rewrite_chinese

_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), r"\frac"),
    **dict.fromkeys(("left", "right", "displaystyle", "limits", "big", "Big", "bigl", "bigr", "Bigl", "Bigr"), ""),
    **dict.fromkeys(("quad", "qquad", "text", "textbf", "textit", "textrm", "mathrm", "mathbf", "mathit"), " "),
    **dict.fromkeys(("mbox", "boldsymbol", "operatorname"), " "),
    **dict.fromkeys(("leq", "leqslant", "le"), r"\le "),
    **dict.fromkeys(("geq", "geqslant", "ge"), r"\ge "),
    **dict.fromkeys(("times", "cdot", "ast"), r"\cdot "),
    **dict.fromkeys(("degree", "textdegree", "degrees"), " degrees"),
    **dict.fromkeys(("varnothing", "emptyset"), r"\emptyset "),
    "lt": "<", "gt": ">", "div": "/", "langle": "(", "rangle": ")", "lbrace": r"\{", "rbrace": r"\}",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+) ?")
_TEXT_GROUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname) ?\{([^{}]*)\}"
)
_INVISIBLE = re.compile(r"(?<!\\)\\[!()\[\]]")
_SPACING = re.compile(r"(?<!\\)\\[,;: ]|~")
_DEGREES = re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))")
_SHORT_FRACTION = re.compile(r"\\frac ?(?:(\d)|\{([^{}]*)\}) ?(?:(\d)|\{([^{}]*)\})")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|cot|log|ln|exp|pi|infty|infinity|pm)(?![A-Za-z])")
_BOX = re.compile(r"\\(?:boxed|fbox) ?\{")
_PART = re.compile(r"(?:^|[\s,;])\(?(?:([a-h])|([1-9])|(i{1,3}|iv|v))\)[\s:]")
_SEPARATOR = re.compile(r" ?(?:[,;] ?(?:and |or )?|(?<= )(?:and|or|&) )")
_LOOSE_SPACE = re.compile(r" (?!\d)|(?<!\d) ")
_LIST_LIKE_NUMBER = re.compile(r"\d{1,2}(?:, \d{3})+|\d{3}, \d{3}")
_MIXED = re.compile(r"(?<![\d.^_}])(\d+)(?: ?\\frac\{(\d+)\}\{(\d+)\}| (\d+)/(\d+)(?![\d.]))")
_EMPTY_SET = re.compile(r"\\\{ ?\\\}|(?<![A-Za-z])(?:the )?empty set(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![\\A-Za-z])((?:positive|negative) )?inf(?:inity)?(?![A-Za-z])", re.IGNORECASE)
_PLUS_INFINITY = re.compile(r"(^|[(\[,]) ?\+ ?\\infty")
_DEGREES_NUMBER = re.compile(r"(\d+(?:\.\d+)?) degrees")
_OPENING, _CLOSING = "([{", ")]}"
_MATRIX = re.compile(
    r"(?P<opening>[(\[]?) ?\\begin\{(?P<kind>[pb]?matrix|smallmatrix|array)\}(?:\{[clr| ]*\})?"
    r"(?P<body>(?:(?!\\begin|\\end).)*)\\end\{(?P=kind)\} ?(?P<closing>[)\]]?)"
)


@dataclass(frozen=True, kw_only=True)
class ListAnswer:
    """An answer of several items."""

    items: tuple[str, ...]
    brackets: str = ""  # "()", "[)", "{}" of a set; "" without
    is_ordered: bool = True
    has_or: bool = False


@lru_cache(maxsize=4096)  # the responses to one prompt share the reference, and many of them are equal
def normalise(text: str) -> str:
    """Returns `text` in one notation: plain text where it can be, LaTeX where it must be."""
    if text.isascii() and (text.isdigit() or len(text) == 1 and text.isalpha()):
        return text
    is_ascii = text.isascii()
    text = text.replace("\0", "") if is_ascii else characters.rewrite_characters(text)
    text = characters.remove_bold(text.replace("`", "")).replace(r"\%", "%").replace("{,}", ",")
    text = _drop_dollars(text)
    if "\\" in text:
        text = _normalise_latex(text)
    text = _rewrite_plain(" ".join(text.split()).strip("\"'"))
    if not _ends_in_factorial(text):
        text = text.removesuffix(".").rstrip().removesuffix("!").rstrip()
    return text if is_ascii else rewrite_chinese(text)


def remove_spaces(text: str) -> str:
    """Removes the spaces that have no meaning in LaTeX; those between digits stay, and 1, 234 is not 1,234."""
    return text if " " not in text or _LIST_LIKE_NUMBER.fullmatch(text) else _LOOSE_SPACE.sub("", text)


def to_latex(text: str) -> str:
    r"""Writes a normalised text as LaTeX that a parser reads as one expression: `sqrt(x)` as `\sqrt{x}`."""
    text = _FUNCTION.sub(lambda found: "\\" + found.group(1).replace("infinity", "infty") + " ", text)
    text = _MIXED.sub(_write_sum, text)
    if r"\sin" in text or r"\cos" in text or r"\tan" in text:
        text = _DEGREES_NUMBER.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    return text.replace("**", "^").replace(" degrees", r"^{\circ}").replace("%", r"\%")


def strip_brackets(text: str) -> str:
    """Removes round brackets around the whole, where they hold one item: "(x + 1)" but not "(3, 4)"."""
    while text.startswith("(") and _is_wrapped(text) and len(_split(text[1:-1])) == 1:
        text = text[1:-1].strip()
    return text


def split_list(text: str) -> ListAnswer | None:
    r"""Returns the items of a normalised text, or None where it is one answer.

    "(3, 4)", "{3, 4}", "3, 4", "3 or 4", `\pm 3` and "(a) 3 (b) 4" have two items.
    """
    if r"\begin" in text:
        return None  # a matrix
    if text.startswith((r"\{", "{")) and text.endswith("}") and _is_wrapped(text.removeprefix("\\")):
        inner = text.removeprefix("\\")[1:-1].removesuffix("\\")
        return ListAnswer(items=_split(inner), brackets="{}", is_ordered=False)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _is_wrapped(text):
        items = _split(text[1:-1])
        return ListAnswer(items=items, brackets=text[0] + text[-1]) if len(items) > 1 else None
    if parts := _parts(text):
        return ListAnswer(items=parts)
    items = _split(text)
    if len(items) == 1 and text.count(r"\pm") == 1:
        return ListAnswer(items=tuple(_signs(text)), is_ordered=False)
    if len(items) == 1:
        return None
    is_ordered = " and " not in text and " or " not in text
    signed = tuple(sign for item in items for sign in _signs(item))
    return ListAnswer(items=signed, is_ordered=is_ordered, has_or=" or " in text)


def read_matrix(text: str) -> ListAnswer | None:
    """Returns the entries of a matrix; its brackets mean nothing, [[1, 2], [3, 4]] is one, too."""
    rows = _read_rows(text)
    if len({len(row) for row in rows}) != 1:
        return None
    items = tuple(cell.strip() for row in rows for cell in row)
    return ListAnswer(items=items, brackets=f"{len(rows)} x {len(rows[0])}")


def _read_rows(text: str) -> list[Sequence[str]]:
    if text.startswith("[[") and text.endswith("]]"):
        return [_split(row[1:-1]) for row in _split(text[1:-1]) if row[:1] == "[" and row[-1:] == "]"]
    found = _MATRIX.fullmatch(text) if r"\begin" in text else None
    if not found or bool(found["opening"]) != bool(found["closing"]):
        return []
    return [row.split("&") for row in found["body"].strip().removesuffix(r"\\").split(r"\\")]


def _normalise_latex(text: str) -> str:
    for _ in range(text.count(r"\boxed") + text.count(r"\fbox")):
        if not (found := _BOX.search(text)):
            break
        end = characters.closing(text, found.end() - 1)
        text = text[: found.start()] + text[found.end() : end] + text[end + 1 :]
    text = _TEXT_GROUP.sub(r" \1 ", text)
    text = _DEGREES.sub(" degrees", text)
    text = _INVISIBLE.sub("", text)
    text = _SPACING.sub(" ", text)
    text = _COMMAND.sub(lambda found: _COMMANDS.get(found.group(1), found.group()), text)
    return _SHORT_FRACTION.sub(r"\\frac{\1\2}{\3\4}", text)


def _rewrite_plain(text: str) -> str:
    """Applies the rules for shorthand that plain text and LaTeX share."""
    if "sqrt" in text:
        text = characters.brace_roots(text)
    if "^" in text or "_" in text:
        text = characters.brace_scripts(text)
    if "." in text and not text.isalnum():
        text = characters.write_cycles(text)
    if " " in text or "'" in text:
        text = characters.join_digits(text)
    return _write_symbols(text)


def _write_symbols(text: str) -> str:
    r"""Writes words and brackets that mean a symbol as that symbol: `\{\}` as `\emptyset`, infinity as `\infty`."""
    if "empty" in text or "{" in text:
        text = r"\emptyset" if text == "{}" else _EMPTY_SET.sub(r"\\emptyset ", text).strip()
    if "inf" in text.casefold():
        text = _INFINITY.sub(
            lambda word: ("-" if (word[1] or "")[:3].casefold() == "neg" else "") + r"\infty ", text
        )
        text = _PLUS_INFINITY.sub(r"\1\\infty", text).strip()
    return text


def _write_sum(found: re.Match[str]) -> str:
    r"""Writes a mixed number as the sum it is, where a parser would see a product: `2\frac{1}{2}`."""
    whole, top, bottom = (part for part in found.groups() if part)
    return rf"({whole}+\frac{{{top}}}{{{bottom}}})" if int(top) < int(bottom) else found.group()


def _drop_dollars(text: str) -> str:
    """Removes the `$` around formulas; a `$` that means dollars stays."""
    if text.count("$") - text.count(r"\$") == 1:
        text = text.replace(r"\$", "$")
        return text.replace("$", "", 1) if text.count("$") > 1 else text
    return text.replace(r"\$", "\0").replace("$", "").replace("\0", "$")


def _is_wrapped(text: str) -> bool:
    return characters.closing(text, 0) == len(text) - 1


def _ends_in_factorial(text: str) -> bool:
    return text.endswith("!!") or (text.endswith("!") and text[-2:-1].isalnum() and " " not in text)


def _split(text: str) -> tuple[str, ...]:
    """Splits at commas, semicolons, "and" and "or" outside of brackets."""
    depths = _depths(text)
    cuts = [found for found in _SEPARATOR.finditer(text) if not depths[found.start()]]
    edges = [0, *(edge for found in cuts for edge in found.span()), len(text)]
    items = (text[start:end].strip() for start, end in zip(edges[::2], edges[1::2], strict=True))
    return tuple(item for item in items if item) or ("",)


def _depths(text: str) -> list[int]:
    """Returns the number of open brackets at each character."""
    depths, depth = [], 0
    for character in text:
        depth = max(0, depth + (character in _OPENING) - (character in _CLOSING))
        depths.append(depth)
    return depths


def _parts(text: str) -> tuple[str, ...]:
    """Returns the answers of "(a) 3 (b) 4", or none."""
    marks = list(_PART.finditer(text))
    if len(marks) < 2 or marks[0].start() or marks[0].lastindex != marks[1].lastindex:
        return ()
    edges = [*(mark.start() for mark in marks[1:]), len(text)]
    return tuple(text[mark.end() : end].strip(" ,;") for mark, end in zip(marks, edges, strict=True))


def _signs(text: str) -> Iterator[str]:
    r"""Yields both values of a text with `\pm`, else the text itself."""
    before, sign, after = text.partition(r"\pm")
    if not sign:
        yield text
        return
    has_left_side = before.strip() and not before.rstrip().endswith("=")
    yield f"{before}+{after}" if has_left_side else f"{before}{after.lstrip()}"
    yield f"{before}-{after.lstrip()}"
