"""All calls of math-verify. A hostile expression may run without end: `pool.VerifyPool` sets deadlines."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sympy import Basic

# It warns that its own time limits are off; ours are outside (signals do not work in threads).
logging.getLogger("math_verify").setLevel(logging.ERROR)

EXACT_DECIMALS = 10
"""Decimals two numbers near 1 must share where neither was rounded."""
EXACT_DIGITS = 15
"""Digits in which the difference of two expressions with numbers near 1 must be zero."""
MAX_SPAN = 1_000
"""Powers of ten between the numbers of an expression past which it is not compared."""


def is_equal_with_defaults(extracted: str, answer: str) -> bool:
    """Compares what math-verify finds in two texts with its own defaults, as the published reward does."""
    from math_verify import verify

    return bool(verify(_find_math(answer), _find_math(extracted), timeout_seconds=None))


def is_equal_expression(given: str, wanted: str, decimals: int | None = None) -> bool:
    r"""Compares two LaTeX expressions, each as a whole; numbers to `decimals` places, if any are given.

    math-verify takes small differences for zero. What is small depends on the numbers: 2^{-54} is not 2^{-55}.

    >>> is_equal_expression(r"\sqrt{12}", r"2\sqrt{3}"), is_equal_expression("2^{-54}", "2^{-55}")
    (True, False)
    """
    from math_verify import verify

    span = _span(wanted) + _span(given)
    if span > MAX_SPAN:
        return False
    return bool(
        verify(
            _parse_latex(wanted),
            _parse_latex(given),
            float_rounding=EXACT_DECIMALS + span if decimals is None else decimals,
            numeric_precision=EXACT_DIGITS + span,
            allow_set_relation_comp=True,
            timeout_seconds=None,
        )
    )


@lru_cache(maxsize=1024)  # the responses to one prompt share the reference
def _find_math(text: str) -> list:
    from math_verify import parse

    return parse(text, parsing_timeout=0)


@lru_cache(maxsize=1024)
def _parse_latex(text: str) -> list:
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # Units are compared before; math-verify would drop them, and with them the last letter of many formulas.
    normalization = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    config = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)
    return parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=0)


@lru_cache(maxsize=1024)
def _span(text: str) -> int:
    """Returns the powers of ten between the largest number in an expression, or 1, and the smallest, or 1."""
    from sympy import Basic, preorder_traversal

    nodes = preorder_traversal(_parse_latex(text))
    exponents = [exponent for node in nodes if isinstance(node, Basic) for exponent in _exponents(node)]
    return max(exponents, default=0) - min(exponents, default=0)


def _exponents(node: Basic) -> list[int]:
    """Returns 0 and the power of ten of a number; of a fraction those of its two parts, too."""
    from mpmath import mag, mpmathify

    if not node.is_number or node.is_zero or node.is_infinite:
        return [0]
    if node.is_Rational:
        parts = ((sign, abs(int(part))) for sign, part in ((1, node.p), (-1, node.q)))
        return [0, *(sign * (int(part.bit_length() * 0.30103) + 1) for sign, part in parts if part > 9)]
    value = abs(node.evalf(3))
    return [0, int(mag(mpmathify(value)) * 0.30103)] if value.is_Float and value else [0]
