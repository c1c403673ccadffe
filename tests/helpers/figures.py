"""Figures in the documentation, and the cards of benchmarks/results that they come from.

A link to a card covers the block that it stands in: a paragraph, an item of a list, or a table with the paragraph right
before it; one in a row of a table covers that row alone. A fragment narrows it to a part of the card, as in
results/rl_step.json#/ours/sync. A figure is found there when one of the numbers, rounded to its digits, equals it. So a
wrong figure may be found by chance: the smaller the part, the less likely. A measurement of which no card was kept has
"(unverified)" behind it; in a section with a paragraph "Unverified: ..." all below that paragraph are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

FACTORS = {
    "%": (1, 100),
    "ms": (1, 1e3, 1e-3),
    "microseconds": (1, 1e6),
    "points": (1, 100),
    **dict.fromkeys(("kB", "KB", "MB", "GB", "kB/s", "MB/s", "GB/s"), (1, 1e-3, 1e-6, 1e-9)),
    **dict.fromkeys(("KiB", "MiB", "GiB"), (1, 2**-10, 2**-20, 2**-30)),
    **dict.fromkeys(("s", "seconds", "times", "tokens/s", "of the time"), (1,)),
    "minutes": (1, 1 / 60),
    "hours": (1, 1 / 3600),
}
"""Units of measurements, and what a number of a card may be multiplied with to be in them."""
NO_UNIT = (1, 100)
"""In tables the unit stands above."""

_NUMBER = r"(?<![\w./,^-])[+-]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w.]*\d)"
_FIGURE = re.compile(rf"({_NUMBER})(?: ?({'|'.join(sorted(FACTORS, key=len, reverse=True))})(?![\w/-]))?")
_LINK = re.compile(r"\[([^\]]*)\]\((?:[\w./]*/)?benchmarks/results/([\w.]+\.json)(?:#(/[^)]*))?\)")
_ASIDE = re.compile(
    r"`[^`\n]*`|\]\([^)]*\)"  # code, targets of links
    r"|(?:TRL|vLLM|Python|torch|CUDA|Ray|transformers|Megatron-Core|Engine|Slurm|aims?(?: of)?:?) \d[\d.]*\d?"
    r"|(?:\d[\d.]*(?:,| and| to) )*\d[\d.]* ?(?:[MB]\b(?! ?/)|million|trillion|billion)(?: parameters)?"
    r"|(?:its )?95 % (?:bootstrap|percentile|intervals?)"
    rf"|{_NUMBER}[^,.;:|(]{{0,16}}\(unverified\)|\[[^\]\[]*\d\] \(unverified\)"
)
"""Digits of no measurement (code, links, versions, aims, sizes of models, kinds of intervals) or an unverified one."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number as it is written, with its unit or ""."""

    text: str
    unit: str

    @property
    def is_measured(self) -> bool:
        return bool(self.unit) and (self.unit != "times" or "." in self.text)  # "asked 8 times"

    @property
    def counts(self) -> bool:
        """Returns True for what is compared with a card: with a unit or a decimal point; others are mostly settings."""
        return self.is_measured or "." in self.text

    def equals(self, number: float) -> bool:
        """Returns True if the number, in the figure's unit, rounds to it.

        The sign is compared where the text has one: without one, words such as "lower by" may say it.
        """
        plain = self.text.replace(",", "")
        mantissa, _, exponent = plain.partition("e")
        half = 0.5 * 10 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        number = number if plain[0] in "+-" else abs(number)
        factors = FACTORS.get(self.unit, NO_UNIT)
        return any(abs(number * factor - float(plain)) <= half * (1 + 1e-9) for factor in factors)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A paragraph, an item of a list, or a table with the paragraph before it."""

    page: str
    text: str
    is_unverified: bool  # a paragraph above it, in its section, begins with "Unverified:"

    @property
    def cards(self) -> list[tuple[str, str]]:
        """Returns the cards that it links, each with the part of it that counts."""
        return [(card, pointer) for _, card, pointer in _LINK.findall(self.text)]

    @property
    def figures(self) -> list[Figure]:
        found = _FIGURE.findall(_ASIDE.sub(" ", self.text))
        return [Figure(text=text.rstrip(","), unit=unit) for text, unit in found]


def read_blocks(path: Path) -> Iterator[Block]:
    page = str(path.relative_to(ROOT))
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    parts = [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]
    parts = [item for part in parts for item in re.split(r"\n(?=\s*(?:- |\d+\. ))", part)]
    before, is_unverified = "", False
    for part, after in zip(parts, [*parts[1:], ""], strict=True):
        is_unverified = part.startswith("Unverified:") or (is_unverified and not part.startswith("#"))
        if not _is_table(part):
            before, texts = part, [] if _is_table(after) else [part]
        else:
            linked = [row for row in part.splitlines() if _LINK.search(row)]
            texts = [*linked, "\n".join([before, *(row for row in part.splitlines() if row not in linked)])]
        yield from (Block(page=page, text=text, is_unverified=is_unverified) for text in texts)


def _is_table(part: str) -> bool:
    return part.lstrip().startswith("|")


def list_links(path: Path) -> list[tuple[str, str]]:
    """Returns the cards that a page links anywhere, each with the part that its fragment names."""
    return [(card, pointer) for _, card, pointer in _LINK.findall(path.read_text(encoding="utf-8"))]


@cache
def read_card(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def find_part(card: Any, pointer: str) -> Any:
    """Returns the part of a card that a JSON pointer names; `%20` stands for a space and `~1` for a slash.

    Raises:
        KeyError: there is no such part.
    """
    for step in pointer.split("/")[1:]:
        key = step.replace("%20", " ").replace("~1", "/")
        card = card[int(key) if isinstance(card, list) else key]
    return card


def list_numbers(part: Any) -> Iterator[float]:
    if isinstance(part, bool) or part is None:
        return
    if isinstance(part, (int, float)):
        yield part
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from list_numbers(value)
            yield from map(float, re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", name.replace(",", "")))
    elif isinstance(part, list):
        for value in part:
            yield from list_numbers(value)


@cache
def read_numbers(card: str, pointer: str) -> frozenset[float]:
    return frozenset(list_numbers(find_part(read_card(card), pointer)))


def is_found(figure: Figure, block: Block) -> bool:
    """Returns True if a linked part of a card has the figure."""
    return any(figure.equals(number) for card in block.cards for number in read_numbers(*card))
