"""Reads numbers with units, and decides when two of them are the same.

- Equal values are equal in any notation: 0.5, 1/2, 5e-1.
- Rounding is right in two cases only. The reference is exact and does not terminate (1/3): then an answer rounded to
  four significant digits or more is right. The reference is a decimal of three significant digits or more (2.67):
  then a more precise answer that rounds to it is right.
- Units count when both sides have one: another unit is wrong unless the amounts are equal (1 m, 100 cm). Where one
  side has none, the bare numbers decide. A noun is a unit, too: 7 apples.
- A bare number may mean a percentage (50 or 0.5 for 50%), but one below 1 is never read as per cent (0.5 is not 0.5%).

>>> is_same_quantity(read_quantity("1.5 m"), read_quantity("150 cm"))
True
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from data_pipeline.verify.rules.units import Unit, is_in_table, read_unit

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
    rf"|(?P<decimal>{_DECIMAL})(?:\\overline\{{(?P<cycle>\d{{1,20}})\}})?"
    rf"(?P<scale>[eE][+-]?\d{{1,3}}(?!\d)| ?(?:\\cdot|\*|x) ?{_POWER})?"
    r")"
)
_RATIO = re.compile(r"(\d+(?:\.\d+)?) ?: ?((?!0\d)\d+(?:\.\d+)?)")  # 9:05 is a time
_RATIO_IN_WORDS = re.compile(r"(\d+) to (\d+)")
_CURRENCIES = {
    **dict.fromkeys(("$", "US$", "US $", "USD"), "dollar"), **dict.fromkeys(("€", "EUR"), "euro"),
    **dict.fromkeys(("£", "GBP"), "sterling"), **dict.fromkeys(("CNY", "RMB"), "yuan"),
    **dict.fromkeys(("¥", "JPY"), "yen"), **dict.fromkeys(("₹", "INR", "Rs", "Rs."), "rupee"),
}  # fmt: skip
_CURRENCY = re.compile(f"({'|'.join(sorted(map(re.escape, _CURRENCIES), reverse=True))}) ?(?=[-.\\d\\\\])")
_PART = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z\u4e00-\u9fff]+)(?:,? and |, ?| |\Z|(?=\d))")
_SCALE = re.compile(r" ?(hundred|thousand|million|billion|trillion|dozen|万|亿)(?![A-Za-z])")
_SCALES = dict(
    hundred=100, thousand=1_000, million=10**6, billion=10**9, trillion=10**12, dozen=12, 万=10**4, 亿=10**8
)  # fmt: skip

_PERCENT = (("%", 1),)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with its unit."""

    value: Fraction
    unit: Unit = Unit()
    decimals: int | None = None  # digits after the point; None of a fraction, which is exact
    digits: int = 0  # significant ones


@lru_cache(maxsize=4096)
def read_quantity(text: str) -> Quantity | None:
    r"""Returns the number with its unit that a normalised text is, or None: "$5", `\frac{1}{2} cm`, "3e8 m/s"."""
    if ratio := _read_ratio(text):
        return ratio
    found = _CURRENCY.match(text, 1 if text[:1] == "-" else 0)
    head = _HEAD.match(text[found.end() :] if found else text)
    number = head and _read_number(head, text[:1] if found else "")
    if not head or not number:
        return None
    rest = head.string[head.end() :]
    if scale := _SCALE.match(rest):
        number, rest = Quantity(value=number.value * _SCALES[scale.group(1)]), rest[scale.end() :]
    unit = read_unit(rest)
    if unit is None:
        return _read_compound(text)
    if found:
        unit = replace(unit, bases=tuple(sorted((*unit.bases, (_CURRENCIES[found.group(1)], 1)))))
    return replace(number, unit=unit)


def is_same_quantity(given: Quantity, wanted: Quantity) -> bool:
    """Returns True where an answer is right for a reference, by the rules above."""
    if given.unit == wanted.unit:
        return _is_close(given, wanted)
    if given.unit.bases and wanted.unit.bases:
        amounts = (given.value * given.unit.factor, wanted.value * wanted.unit.factor)
        return given.unit.bases == wanted.unit.bases and amounts[0] == amounts[1]
    if _PERCENT in (given.unit.bases, wanted.unit.bases):
        is_percent = abs(given.value) >= 1 and _is_close(given, wanted)
        return is_percent or _is_close(_as_fraction(given), _as_fraction(wanted))
    return _is_close(given, wanted)


def shared_decimals(given: Quantity | None, wanted: Quantity | None) -> int | None:
    """Returns the decimals in which two numbers must agree where one rounds the other, else None.

    An argument of None is an exact value that is no fraction, such as a root: 1.414 must agree with it in 3 decimals.
    """
    if given and given.decimals and (not wanted or _is_repeating(wanted)):
        return given.decimals if given.digits >= ROUNDED_DIGITS else None
    if wanted and wanted.decimals and wanted.digits >= REFERENCE_DIGITS:
        is_finer = not given or given.decimals is None or given.decimals > wanted.decimals
        return wanted.decimals if is_finer else None
    return None


def _is_close(given: Quantity, wanted: Quantity) -> bool:
    if given.value == wanted.value:
        return True
    decimals = shared_decimals(given, wanted)
    return decimals is not None and abs(given.value - wanted.value) <= Fraction(1, 2 * 10**decimals)


def _is_repeating(number: Quantity) -> bool:
    """Returns True for a fraction whose decimals do not end."""
    rest = number.value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return number.decimals is None and rest > 1


def _as_fraction(number: Quantity) -> Quantity:
    """Returns 0.5 for 50%; other numbers as they are."""
    if number.unit.bases != _PERCENT:
        return number
    decimals = None if number.decimals is None else number.decimals + 2
    return Quantity(value=number.value / 100, decimals=decimals, digits=number.digits)


def _read_number(head: re.Match[str], sign_before: str) -> Quantity | None:
    sign = -1 if "-" in (sign_before, head.group(1)) else 1
    if power := head["power"]:
        return Quantity(value=sign * _read_power(power), decimals=0)
    if decimal := head["decimal"]:
        return _read_decimal(decimal.replace(",", ""), head["cycle"] or "", head["scale"] or "", sign)
    top, bottom = int(head["top"] or head["top2"]), int(head["bottom"] or head["bottom2"])
    whole = int(head["whole"] or head["whole2"] or 0)
    return Quantity(value=sign * (whole + Fraction(top, bottom))) if bottom else None


def _read_decimal(decimal: str, cycle: str, scale: str, sign: int) -> Quantity | None:
    r"""Reads 1.5, 1.5e3 and `0.1\overline{6}`, which is exact: 1/6."""
    whole, point, behind = decimal.partition(".")
    if cycle:
        value = Fraction(
            int(whole + behind + cycle) - int(whole + behind), 10 ** len(behind) * (10 ** len(cycle) - 1)
        )
        return Quantity(value=sign * value) if point and whole and not scale else None
    digits = len((whole + behind).lstrip("0"))
    value = sign * Fraction(f"{whole or '0'}.{behind or '0'}")
    if not scale:
        return Quantity(value=value, decimals=len(behind), digits=digits)
    power = Fraction(10) ** int(scale[1:]) if scale[0] in "eE" else _read_power(scale)
    return Quantity(value=value * power, decimals=0, digits=digits)


def _read_compound(text: str) -> Quantity | None:
    """Reads an amount in several units, the larger first: "2 h 30 min" is 150 min."""
    parts, position = [], 0
    while position < len(text):
        found = _PART.match(text, position)
        unit = found and read_unit(found.group(2))
        if not found or not unit or not unit.bases or not is_in_table(unit):
            return None
        parts.append((Fraction(found.group(1)), unit))
        position = found.end()
    units = [unit for _, unit in parts]
    is_falling = all(
        a.bases == b.bases and a.factor > b.factor for a, b in zip(units, units[1:], strict=False)
    )
    if len(parts) < 2 or not is_falling or any(value.denominator > 1 for value, _ in parts[:-1]):
        return None
    return Quantity(
        value=sum(value * unit.factor for value, unit in parts) / units[-1].factor, unit=units[-1]
    )


def _read_power(text: str) -> Fraction:
    return Fraction(10) ** int(text.rpartition("^")[2].strip("{} "))


def _read_ratio(text: str) -> Quantity | None:
    """Reads a:b, or "a to b", as a fraction. More terms, and times of day, are compared as lists."""
    found = _RATIO.fullmatch(text) or _RATIO_IN_WORDS.fullmatch(text)
    bottom = Fraction(found.group(2)) if found else 0
    return Quantity(value=Fraction(found.group(1)) / bottom) if found and bottom else None
