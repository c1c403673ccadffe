"""Numbers with units: how they are written, and when two of them are the same.

Equal values are equal, however they are written: 0.5, 1/2, 5e-1. Rounding is right in two cases only. The reference
is exact and does not terminate (1/3): then an answer rounded to four significant digits or more is right. The
reference is a decimal of three significant digits or more (2.67): then a more precise answer that rounds to it is.
Units count when both sides have one: another unit is wrong unless the amounts are equal (1 m, 100 cm). Where one
side has none, the bare numbers decide. A bare number may mean a percentage (50 or 0.5 for 50%), but one below 1 is
never taken for per cent (0.5 is not 0.5%).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from data_pipeline.verify.units import Unit, read_unit

ROUNDED_DIGITS = 4
"""Significant digits an answer needs to stand for an exact value that it rounds."""
REFERENCE_DIGITS = 3
"""Significant digits a reference needs to be taken for a rounded value."""

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_POWER = r"10 ?\^ ?(?:\{ ?([+-]?\d{1,3}) ?\}|(\d))"
_HEAD = re.compile(
    r"([+-]?) ?(?:"
    rf"(?P<power>{_POWER})"
    r"|(?:(?P<whole>\d+) ?)?\\frac ?\{ ?(?P<top>[+-]?\d+) ?\} ?\{ ?(?P<bottom>\d+) ?\}"
    r"|(?:(?P<whole2>\d+) )?(?P<top2>\d+) ?/ ?(?P<bottom2>\d+)(?![.\d])"
    rf"|(?P<decimal>{_DECIMAL})(?P<scale>[eE][+-]?\d{{1,3}}(?!\d)| ?(?:\\cdot|\*|x) ?{_POWER})?"
    r")"
)
_RATIO = re.compile(r"\d+(?:\.\d+)?(?: ?: ?\d+(?:\.\d+)?)+")
_RATIO_IN_WORDS = re.compile(r"\d+ to \d+")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
_SCALE = re.compile(r" ?(hundred|thousand|million|billion|trillion|dozen)(?![A-Za-z])")
_SCALES = {
    "hundred": 100,
    "thousand": 1_000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
PERCENT = (("%", 1),)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with its unit."""

    value: Fraction
    unit: Unit = Unit()
    decimals: int | None = None  # digits behind the point; None of a fraction, which is exact
    digits: int = 0  # significant ones


@lru_cache(maxsize=4096)
def read_quantity(text: str) -> Quantity | None:
    """The number, with its unit, that the whole of a plain text is."""
    if ratio := _read_ratio(text):
        return ratio
    sign, text = ("-", text[1:].lstrip()) if text[:2] in ("-$", "-€", "-£") else ("", text)
    currency = _CURRENCIES.get(text[:1], "")
    head = _HEAD.match(text[1:].lstrip() if currency else text)
    number = head and _read_number(head, sign)
    if not head or not number:
        return None
    rest = head.string[head.end() :]
    if scale := _SCALE.match(rest):
        number, rest = Quantity(value=number.value * _SCALES[scale.group(1)]), rest[scale.end() :]
    unit = read_unit(rest)
    if unit is None:
        return None
    if currency:
        unit = replace(unit, bases=tuple(sorted((*unit.bases, (currency, 1)))))
    return replace(number, unit=unit)


def is_same_quantity(given: Quantity, wanted: Quantity) -> bool:
    """Whether an answer is the reference, by the rules above."""
    if given.unit == wanted.unit:
        return _is_close(given, wanted)
    if given.unit.bases and wanted.unit.bases:
        amounts = (given.value * given.unit.factor, wanted.value * wanted.unit.factor)
        return given.unit.bases == wanted.unit.bases and amounts[0] == amounts[1]
    if PERCENT in (given.unit.bases, wanted.unit.bases):
        is_percent = abs(given.value) >= 1 and _is_close(given, wanted)
        return is_percent or _is_close(_as_share(given), _as_share(wanted))
    return _is_close(given, wanted)


def _is_close(given: Quantity, wanted: Quantity) -> bool:
    if given.value == wanted.value:
        return True
    decimals = rounding(given, wanted)
    return decimals is not None and abs(given.value - wanted.value) <= Fraction(1, 2 * 10**decimals)


def rounding(given: Quantity | None, wanted: Quantity | None) -> int | None:
    """To how many decimals the two must agree where one rounds the other; None stands for an exact value."""
    if given and given.decimals and (not wanted or _is_endless(wanted)):
        return given.decimals if given.digits >= ROUNDED_DIGITS else None
    if wanted and wanted.decimals and wanted.digits >= REFERENCE_DIGITS:
        is_finer = not given or given.decimals is None or given.decimals > wanted.decimals
        return wanted.decimals if is_finer else None
    return None


def _is_endless(number: Quantity) -> bool:
    rest = number.value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return number.decimals is None and rest > 1


def _as_share(number: Quantity) -> Quantity:
    if number.unit.bases != PERCENT:
        return number
    decimals = None if number.decimals is None else number.decimals + 2
    return Quantity(value=number.value / 100, decimals=decimals, digits=number.digits)


def _read_number(head: re.Match[str], sign_before: str) -> Quantity | None:
    sign = -1 if "-" in (sign_before, head.group(1)) else 1
    if power := head["power"]:
        return Quantity(value=sign * _power(power), decimals=0)
    if decimal := head["decimal"]:
        return _read_decimal(decimal.replace(",", ""), head["scale"] or "", sign)
    top, bottom = int(head["top"] or head["top2"]), int(head["bottom"] or head["bottom2"])
    whole = int(head["whole"] or head["whole2"] or 0)
    return Quantity(value=sign * (whole + Fraction(top, bottom))) if bottom else None


def _read_decimal(decimal: str, scale: str, sign: int) -> Quantity:
    whole, _, behind = decimal.partition(".")
    digits = len((whole + behind).lstrip("0"))
    value = sign * Fraction(f"{whole or '0'}.{behind or '0'}")
    if not scale:
        return Quantity(value=value, decimals=len(behind), digits=digits)
    power = Fraction(10) ** int(scale[1:]) if scale[0] in "eE" else _power(scale)
    return Quantity(value=value * power, decimals=0, digits=digits)


def _power(text: str) -> Fraction:
    return Fraction(10) ** int(text.rpartition("^")[2].strip("{} "))


def _read_ratio(text: str) -> Quantity | None:
    """a:b as the fraction it is; more terms, and clock times, are compared as lists."""
    if ":" not in text and not _RATIO_IN_WORDS.fullmatch(text):
        return None
    terms = text.replace(" to ", ":").split(":")
    is_ratio = len(terms) == 2 and _RATIO.fullmatch(text.replace(" to ", ":"))
    top, bottom = (Fraction(term.strip()) for term in terms) if is_ratio else (Fraction(0), Fraction(0))
    return Quantity(value=top / bottom) if bottom else None
