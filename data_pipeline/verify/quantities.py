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
from functools import cache, lru_cache

ROUNDED_DIGITS = 4
"""Significant digits an answer needs to stand for an exact value that it rounds."""
REFERENCE_DIGITS = 3
"""Significant digits a reference needs to be taken for a rounded value."""
MAX_UNIT_WORDS = 4

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
_RATIO = re.compile(r"(\d+(?:\.\d+)?) ?: ?(\d+(?:\.\d+)?)")
_RATIO_IN_WORDS = re.compile(r"(\d+) to (\d+)")
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
_SCALE = re.compile(r" ?(hundred|thousand|million|billion|trillion|dozen)(?![A-Za-z])")
_SCALES = dict(hundred=100, thousand=1_000, million=10**6, billion=10**9, trillion=10**12, dozen=12)

_UNIT_TOKEN = re.compile(r" ?([A-Za-zµΩ%]+|\^ ?\{? ?-?\d ?\}?|/|\*|\\cdot|\\mu|\\Omega) ?")
_TRIGONOMETRY = re.compile(r"sin|cos|tan|cot")
_NOT_UNITS = frozenset(("sin", "cos", "tan", "log", "sqrt", "exp", "mod", "max", "pi", "not", "plus", "minus")) | {
    "times", "wrong", "false", "incorrect", "squared", "cubed", "factorial", "radical",
}  # fmt: skip
# Entries between "|": base, factor, names. Names are singular; a plural s is removed where the name is not found.
_UNITS = """
m 1 m meter metre|m 1/100 cm centimeter centimetre|m 1/1000 mm millimeter millimetre|m 1/10 dm decimeter decimetre
m 1000 km kilometer kilometre|m 1/1000000 um µm micrometer|m 1/1000000000 nm nanometer|in 1 in inch inches
in 12 ft foot feet|in 36 yd yard|in 63360 mi mile|g 1 g gram gramme gm|g 1000 kg kilogram kilo|g 1/1000 mg milligram
g 1000000 t ton tonne|oz 1 oz ounce|oz 16 lb lbs pound|s 1 s sec second|s 60 min minute|s 3600 h hr hour
s 86400 d day|s 604800 wk week|s 1/1000 ms millisecond|month 1 month|month 12 yr year|l 1 l L liter litre
l 1/1000 ml mL milliliter millilitre|rad 1 rad radian|deg 1 degree deg|celsius 1 celsius C|fahrenheit 1 fahrenheit F
K 1 K kelvin|N 1 N newton|N 1000 kN kilonewton|J 1 J joule|J 1000 kJ kilojoule|W 1 W watt|W 1000 kW kilowatt
V 1 V volt|A 1 A amp ampere|A 1/1000 mA milliampere|ohm 1 ohm Ω Omega|Pa 1 Pa pascal|Pa 1000 kPa kilopascal
Hz 1 Hz hertz|Hz 1000 kHz kilohertz|Hz 1000000 MHz megahertz|mol 1 mol mole|dollar 1 dollar usd USD|dollar 1/100 cent
euro 1 euro eur|% 1 % percent pct percentage
"""
_SPELLINGS = (
    (re.compile(r"(?<![A-Za-z])(?:square|sq\.?) ([A-Za-z]+)"), r"\1^2"),
    (re.compile(r"(?<![A-Za-z])(?:cubic|cu\.?) ([A-Za-z]+)"), r"\1^3"),
    (re.compile(r" squared(?![A-Za-z])"), "^2"),
    (re.compile(r" cubed(?![A-Za-z])"), "^3"),
    (re.compile(r"degrees (?=(?:C|F|celsius|fahrenheit)(?![A-Za-z]))", re.IGNORECASE), ""),
    (re.compile(r"(?<![A-Za-z])mph(?![A-Za-z])"), "mi/h"),
    (re.compile(r"(?<![A-Za-z])km?ph(?![A-Za-z])"), "km/h"),
    (re.compile(r" per "), "/"),
)
_PERCENT = (("%", 1),)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Powers of base units, such as (("m", 1), ("s", -1)), and how many of these the written unit is."""

    bases: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)


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

    None as an argument stands for an exact value that is no fraction, such as a root: 1.414 must agree in 3 decimals.
    """
    if given and given.decimals and (not wanted or _is_repeating(wanted)):
        return given.decimals if given.digits >= ROUNDED_DIGITS else None
    if wanted and wanted.decimals and wanted.digits >= REFERENCE_DIGITS:
        is_finer = not given or given.decimals is None or given.decimals > wanted.decimals
        return wanted.decimals if is_finer else None
    return None


@lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    """Returns the unit that a normalised text is, or None: "m/s", "square meters", "N m", "apples"."""
    text = _replace_words(text)
    bases: dict[str, int] = {}
    factor, position, direction, last = Fraction(1), 0, 1, ("", Fraction(1), 0)
    while position < len(text):
        token = _UNIT_TOKEN.match(text, position)
        if not token or len(bases) > MAX_UNIT_WORDS:
            return None
        position, word = token.end(), token.group(1).strip("\\")
        if word == "/":
            direction = -1
        elif word.startswith("^"):
            if not last[2]:
                return None  # 9^{9} is no 9 of something
            power = int(word.strip("^{} ")) - 1
            bases[last[0]] = bases.get(last[0], 0) + last[2] * power
            factor *= last[1] ** (last[2] * power)
        elif word not in ("*", "cdot"):
            known = _find_unit(word)
            if not known:
                return None
            last, direction = (*known, direction), 1
            bases[last[0]] = bases.get(last[0], 0) + last[2]
            factor *= last[1] ** last[2]
    powers = sorted((base, power) for base, power in bases.items() if base and power)
    return Unit(bases=tuple(powers), factor=factor)


def split_unit(text: str) -> tuple[str, Unit]:
    r"""Splits `8\pi cm^2` into expression and unit. Only units of the table are split off: x may be a variable."""
    if _TRIGONOMETRY.search(text):
        return text, Unit()  # the sine of 30 degrees is not in degrees
    words = text.split(" ")
    for start in range(max(1, len(words) - MAX_UNIT_WORDS), len(words)):
        unit = read_unit(" ".join(words[start:]))
        if unit and unit.bases and all(base in _base_units() for base, _ in unit.bases):
            return " ".join(words[:start]), unit
    return text, Unit()


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
    power = Fraction(10) ** int(scale[1:]) if scale[0] in "eE" else _read_power(scale)
    return Quantity(value=value * power, decimals=0, digits=digits)


def _read_power(text: str) -> Fraction:
    return Fraction(10) ** int(text.rpartition("^")[2].strip("{} "))


def _read_ratio(text: str) -> Quantity | None:
    """Reads a:b, or "a to b", as a fraction. More terms, and times of day, are compared as lists."""
    found = _RATIO.fullmatch(text) or _RATIO_IN_WORDS.fullmatch(text)
    bottom = Fraction(found.group(2)) if found else 0
    return Quantity(value=Fraction(found.group(1)) / bottom) if found and bottom else None


def _replace_words(text: str) -> str:
    """Writes words for powers and quotients as signs: "square meters per day" as "meters^2/day"."""
    text = text.strip()
    if " " in text or "mph" in text or "kph" in text:
        for pattern, sign in _SPELLINGS:
            text = pattern.sub(sign, text)
    return text.removesuffix(".")


def _find_unit(word: str) -> tuple[str, Fraction] | None:
    """Returns (base, factor) of a unit's name, or of a noun; None of what may be a variable."""
    names, lower = _unit_names(), word.lower()
    for name in (word, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in names:
            return names[name]
    if len(word) < 3 or not word.isalpha() or lower in _NOT_UNITS:
        return None
    return lower.removesuffix("s"), Fraction(1)


@cache
def _unit_names() -> dict[str, tuple[str, Fraction]]:
    entries = [entry.split() for line in _UNITS.split("\n") for entry in line.split("|") if entry]
    return {name: (base, Fraction(factor)) for base, factor, *names in entries for name in names}


@cache
def _base_units() -> frozenset[str]:
    return frozenset(base for base, _ in _unit_names().values())
