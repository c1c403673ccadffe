"""Unicode and shorthand are written as plain LaTeX."""

from __future__ import annotations

import pytest

from data_pipeline.verify.rules.characters import (
    brace_roots,
    brace_scripts,
    closing,
    join_digits,
    remove_bold,
    rewrite_characters,
    write_cycles,
)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Ａ５", "A5"),
        ("x²³", "x^{23}"),
        ("a₁", "a_{1}"),
        ("2¾", r"2\frac{3}{4}"),
        ("³⁄₄", r"\frac{3}{4}"),
        ("−3", "-3"),
        ("8÷2", "8/2"),
        ("1\u200b2", "12"),
    ],
)
def test_other_characters_become_latex(text: str, written: str):
    assert rewrite_characters(text) == written


def test_radicands_get_braces():
    assert {brace_roots(text) for text in (r"\sqrt16", r"\sqrt 16", "sqrt(16)", r"\sqrt{16}")} == {
        r"\sqrt{16}"
    }
    assert brace_roots(r"\sqrt[3]8") == r"\sqrt[3]{8}"
    assert brace_roots("sqrt(sqrt(16))") == r"\sqrt{\sqrt{16}}"


def test_exponents_and_indices_get_braces():
    assert brace_scripts("x^23") == "x^{23}" and brace_scripts("x_1") == "x_{1}"
    assert brace_scripts("x^-2") == "x^{-2}" and brace_scripts("x^{2}") == "x^{2}"


def test_stars_are_bold_or_a_power():
    assert remove_bold("**2**") == "2"
    assert remove_bold("2**3") == "2^3"
    assert remove_bold("2*3") == "2*3"


def test_groups_of_three_digits_are_joined():
    assert join_digits("98 765") == "98765" and join_digits("98'765") == "98765"
    assert join_digits("1 234 567") == "1234567"
    assert join_digits("98 76") == "98 76" and join_digits("2 100/3") == "2 100/3"


def test_repeating_decimals_are_written_in_one_way():
    for text in (r"0.\bar{3}", r"0.\dot{3}", "0.(3)", r"0.\overline{3}"):
        assert write_cycles(text) == r"0.\overline{3}"
    assert write_cycles("0.1(6)") == r"0.1\overline{6}"


def test_closing_bracket_is_found_at_its_depth():
    assert closing("(a(b)c)d", 0) == 6
    assert closing("(a(b)c)d", 2) == 4
    assert closing("(a", 0) == 2
