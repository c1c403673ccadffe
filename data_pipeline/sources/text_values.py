"""Reads texts and numbers from the values that a row holds, as they were written; no list becomes the text "['3']"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal

from data_pipeline.errors import column_error


class WrittenNumber(float):
    """A number of a JSON file that remembers how it was written: 3.0 and 1e3 stay these texts."""

    def __new__(cls, text: str) -> WrittenNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type[WrittenNumber], tuple[str]]:
        return WrittenNumber, (self.text,)

    text: str


def is_missing(value: object) -> bool:
    """Returns whether a column holds nothing: no value, a blank text, or NaN, which tables write for no number."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def read_value(column: str, value: object) -> str:
    """Returns a text, or a number as it was written; a list or an object of one value is that value.

    Raises:
        BadSample: it is anything else, also a boolean, NaN or infinity.
    """
    inner = value
    while isinstance(inner, (list, tuple, Mapping)) and len(inner) == 1:
        inner = next(iter(inner.values() if isinstance(inner, Mapping) else inner))
    if isinstance(inner, bool):
        raise column_error(
            column, "text", value, f"write the text that is meant: {str(inner).lower()}, yes, no, ..."
        )
    if isinstance(inner, int) or (isinstance(inner, (float, Decimal)) and math.isfinite(inner)):
        return str(inner)
    if not isinstance(inner, str):
        raise column_error(
            column, "text", value, "give one text or number, or choose the corpus that has this column"
        )
    return inner.strip()


def read_label(column: str, value: object) -> str:
    """Returns a column that names or describes a row: "" where it is missing, the values of a list with semicolons."""
    if isinstance(value, (list, tuple)):
        return "; ".join(read_value(column, item) for item in value)
    return "" if is_missing(value) else read_value(column, value)
