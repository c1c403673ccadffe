"""Units are powers of base units with a factor."""

from __future__ import annotations

from fractions import Fraction

from data_pipeline.verify.rules.units import Unit, is_in_table, read_unit, split_unit


def test_unit_has_bases_and_a_factor():
    assert read_unit("cm") == Unit(bases=(("m", 1),), factor=Fraction(1, 100))
    assert read_unit("cm^2") == Unit(bases=(("m", 2),), factor=Fraction(1, 10_000))
    assert read_unit("km/h") == Unit(bases=(("m", 1), ("s", -1)), factor=Fraction(1_000, 3_600))


def test_spellings_of_a_unit_are_equal():
    assert read_unit("square centimeters") == read_unit("平方厘米") == read_unit("cm^2")
    assert read_unit("kilometers per hour") == read_unit("kph") == read_unit("km/h")
    assert read_unit("hours") == read_unit("hr") == read_unit("小时")
    assert read_unit("m/m") == Unit(), "a quotient of equal units is a number"


def test_variables_and_functions_are_no_units():
    assert read_unit("x") is None and read_unit("sin") is None and read_unit("9^{9}") is None


def test_nouns_are_units_outside_the_table():
    apples, area = read_unit("apples"), read_unit("cm^2")
    assert apples == Unit(bases=(("apple", 1),)) and not is_in_table(apples)
    assert area and is_in_table(area)


def test_only_units_of_the_table_are_split_off():
    assert split_unit(r"8\pi cm^2") == (r"8\pi", read_unit("cm^2"))
    assert split_unit("60 km / h") == ("60", read_unit("km/h"))
    assert split_unit("3 x") == ("3 x", Unit())
    assert split_unit(r"\sin 30 degrees") == (r"\sin 30 degrees", Unit())
