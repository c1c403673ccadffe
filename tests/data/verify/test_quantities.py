"""Numbers and units: how they are read, and when two are the same."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.verify.notation import normalise
from data_pipeline.verify.quantities import is_same_quantity, read_quantity
from data_pipeline.verify.rules.units import read_unit, split_unit


@given(st.integers(-999_999, 999_999), st.integers(1, 999))
def test_fractions_are_exact(top, bottom):
    for text in (f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}"):
        found = read_quantity(normalise(text))
        assert found and found.value == Fraction(top, bottom)


@given(st.decimals(-(10**9), 10**9, places=4))
def test_decimals_are_exact(number):
    for text in (f"{number}", f"{number:,}", f"{number}e0"):
        found = read_quantity(normalise(text))
        assert found and found.value == Fraction(str(number))


@pytest.mark.parametrize(
    ("given_answer", "reference", "is_right"),
    [
        ("0.3333", "1/3", True),
        ("0.333", "1/3", False),  # three digits do not stand for an exact value
        ("0.33333", "1/3", True),
        ("0.33334", "1/3", False),
        ("1/3", "0.333", True),  # a reference of three digits was rounded
        ("1/3", "0.33", False),
        ("2.675", "2.67", True),  # half a unit either way
        ("0.1251", "1/8", False),  # terminates: no rounding
        ("1e400", "1e401", False),
        ("5 million", "5,000,000", True),
        ("5 million dollars", "$5,000,000", True),
        ("99%", "0.99", True),
        ("0.99", "0.99%", False),
        ("1 km", "1000 m", True),
        ("1 km^2", "1000000 m^2", True),
        ("1 km^2", "1000 m^2", False),
        ("1:2", "2 to 4", True),
        ("2 1/2", "2.5", True),
    ],
)
def test_rounding_units_and_notations(given_answer, reference, is_right):
    ours, theirs = read_quantity(given_answer), read_quantity(reference)
    assert ours and theirs and is_same_quantity(ours, theirs) == is_right


@pytest.mark.parametrize(
    "text", ["", "x", "5x", "1:2:3", "1/0", "3:0", "9^{9}", "1e9999", "5 and 6", "7 not"]
)
def test_other_texts_are_no_quantities(text):
    assert read_quantity(text) is None


def test_units_are_powers_of_bases():
    assert read_unit("km/h") == read_unit("km per hr") != read_unit("m/s")
    assert read_unit("square meters") == read_unit("m^2")
    assert read_unit("apples") == read_unit("apple") != read_unit("oranges")
    assert read_unit("x") is None


def test_only_known_units_are_split_off():
    assert split_unit(r"8\pi cm^2")[0] == r"8\pi"
    for text in ("5 x", "sin 30 degrees", "cm"):
        assert split_unit(text)[0] == text
