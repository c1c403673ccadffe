"""How a row that does not fit is spoken of: column, wanted, seen, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from data_pipeline.types import BadSample


def mismatch(column: str, wanted: str, seen: object, fix: str) -> BadSample:
    """The error of a row whose column is missing or holds something else."""
    return BadSample("schema", f"{column}: wanted {wanted}, saw {describe(seen)}; {fix}")


def describe(value: object) -> str:
    """What a value is, in a few words."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return f"{{{', '.join(map(str, value))}}}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" + (f", first {describe(value[0])}" if value else "")
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"
