"""Reads units: powers of base units with a factor.

>>> read_unit("km/h") == read_unit("kilometers per hour"), read_unit("平方厘米") == read_unit("cm^2")
(True, True)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

MAX_UNIT_WORDS = 4

_UNIT_TOKEN = re.compile(r" ?([A-Za-zµΩ%]+|[\u4e00-\u9fff]+|\^ ?\{? ?-?\d ?\}?|/|\*|\\cdot|\\mu|\\Omega) ?")
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
Hz 1 Hz hertz|Hz 1000 kHz kilohertz|Hz 1000000 MHz megahertz|mol 1 mol mole
dollar 1 dollar usd USD 美元|dollar 1/100 cent|euro 1 euro eur EUR 欧元|sterling 1 GBP 英镑|yen 1 yen JPY 日元
rupee 1 INR|yuan 1 yuan rmb RMB CNY 元|yuan 1/10 角|% 1 % percent pct percentage|deg 1 度|celsius 1 摄氏度|m 1 米
m 1/10 分米|m 1/100 厘米|m 1/1000 毫米|m 1000 千米 公里|g 1 克|g 1/1000 毫克|g 1000 千克 公斤|g 1000000 吨
l 1 升|l 1/1000 毫升|s 1 秒 秒钟|s 60 分 分钟|s 3600 时 小时|s 86400 天|s 604800 周|month 1 个月|month 12 年
"""
_COUNTERS = frozenset("个只条本张名位件支颗棵辆枚")
"""Words behind a Chinese number that are no unit."""
_SPELLINGS = (
    (re.compile(r"(?<![A-Za-z])(?:square|sq\.?) ([A-Za-z]+)"), r"\1^2"),
    (re.compile(r"(?<![A-Za-z])(?:cubic|cu\.?) ([A-Za-z]+)"), r"\1^3"),
    (re.compile(r" squared(?![A-Za-z])"), "^2"),
    (re.compile(r" cubed(?![A-Za-z])"), "^3"),
    (re.compile(r"degrees (?=(?:C|F|celsius|fahrenheit)(?![A-Za-z]))", re.IGNORECASE), ""),
    (re.compile(r"(?<![A-Za-z])mph(?![A-Za-z])"), "mi/h"),
    (re.compile(r"(?<![A-Za-z])km?ph(?![A-Za-z])"), "km/h"),
    (re.compile(r" per |每"), "/"),
    (re.compile(r"平方(千米|公里|分米|厘米|毫米|米)"), r"\1^2"),
    (re.compile(r"立方(分米|厘米|毫米|米)"), r"\1^3"),
)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Powers of base units, such as (("m", 1), ("s", -1)), and how many of these the written unit is."""

    bases: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)


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
        if unit and unit.bases and is_in_table(unit):
            return " ".join(words[:start]), unit
    return text, Unit()


def _replace_words(text: str) -> str:
    """Writes words for powers and quotients as signs: "square meters per day" as "meters^2/day"."""
    text = text.strip()
    if " " in text or "ph" in text or not text.isascii():
        for pattern, sign in _SPELLINGS:
            text = pattern.sub(sign, text)
    return text.removesuffix(".")


def _find_unit(word: str) -> tuple[str, Fraction] | None:
    """Returns (base, factor) of a unit's name, or of a noun; None of what may be a variable."""
    if word in _COUNTERS:
        return "", Fraction(1)
    names, lower = _unit_names(), word.lower()
    for name in (word, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in names:
            return names[name]
    if len(word) < 3 or not (word.isascii() and word.isalpha()) or lower in _NOT_UNITS:
        return None
    return lower.removesuffix("s"), Fraction(1)


@cache
def _unit_names() -> dict[str, tuple[str, Fraction]]:
    entries = [entry.split() for line in _UNITS.split("\n") for entry in line.split("|") if entry]
    return {name: (base, Fraction(factor)) for base, factor, *names in entries for name in names}


def is_in_table(unit: Unit) -> bool:
    """Returns True for a unit whose parts are all in the table: cm^2 but not apples."""
    return all(base in _base_units() for base, _ in unit.bases)


@cache
def _base_units() -> frozenset[str]:
    return frozenset(base for base, _ in _unit_names().values())
