"""The calls of math-verify: whole expressions for strict, its defaults for released."""

import pytest

from data_pipeline.verify.math import is_equal_expression, is_equal_with_defaults


@pytest.mark.parametrize(
    ("given", "wanted", "decimals", "is_equal"),
    [
        (r"\sqrt{12}", r"2\sqrt{3}", None, True),
        ("x^2-1", "(x+1)(x-1)", None, True),
        ("3x", "4x", None, False),
        ("1.414", r"\sqrt{2}", 3, True),
        ("1.414", r"\sqrt{2}", None, False),
        ("x > 4", "4 < x", None, True),
        ("5m", "5", None, False),  # letters are variables: units were compared before
    ],
)
def test_expressions_are_compared_as_a_whole(given, wanted, decimals, is_equal):
    assert is_equal_expression(given, wanted, decimals) == is_equal


def test_defaults_find_math_within_a_text():
    assert is_equal_with_defaults("so it is $5$", "5")
    assert not is_equal_with_defaults("so it is $5$", "6")
