"""All calls of math-verify. A hostile expression may run without end: `pool.VerifyPool` sets deadlines."""

from __future__ import annotations

import logging
from functools import lru_cache

# It warns that its own time limits are off; ours are outside (signals do not work in threads).
logging.getLogger("math_verify").setLevel(logging.ERROR)

EXACT_DECIMALS = 10
"""Decimals two numbers must share where neither was rounded."""


def is_equal_with_defaults(extracted: str, answer: str) -> bool:
    """Compares what math-verify finds in two texts with its own defaults, as the published reward does."""
    from math_verify import verify

    return bool(verify(_find_math(answer), _find_math(extracted), timeout_seconds=None))


def is_equal_expression(given: str, wanted: str, decimals: int | None = None) -> bool:
    r"""Compares two LaTeX expressions, each as a whole; numbers to `decimals` places, if any are given.

    >>> is_equal_expression(r"\sqrt{12}", r"2\sqrt{3}")
    True
    """
    from math_verify import verify

    gold, target = _parse_latex(wanted), _parse_latex(given)
    decimals = EXACT_DECIMALS if decimals is None else decimals
    return bool(verify(gold, target, decimals, allow_set_relation_comp=True, timeout_seconds=None))


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
