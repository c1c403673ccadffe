"""Reads the fields of a config.json, and refuses those with values that are not supported (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]
"""An object of a config.json."""
Fixed = Mapping[str, tuple[Any, ...]]
"""Fields that must be absent or have one of these values: the values that this package computes."""


def check_fixed(part: Fields, fixed: Fixed, prefix: str = "") -> None:
    """Raises ValueError for a field that is there with another than its supported values."""
    for name, allowed in fixed.items():
        if name in part and part[name] not in allowed:
            raise ValueError(f"{prefix}{name}={part[name]!r} is not supported; only {allowed[0]!r} is")


def read_flag(part: Fields, name: str) -> bool:
    """Returns a field that is true or false, false where it is missing; raises ValueError for anything else."""
    value = part.get(name)
    if value not in (True, False, None):
        raise ValueError(f"{name}={value!r} must be true or false")
    return bool(value)


def read_object(part: Fields, name: str) -> dict[str, Any]:
    """Returns a field that holds fields. Raises as read_number()."""
    if not isinstance(part[name], dict):
        raise ValueError(f"{name} is {part[name]!r}, not a JSON object")
    return part[name]


def read_number(part: Fields, name: str, *, kind: type[int] | type[float] = int, least: int = 1) -> Any:
    """Returns a field; raises KeyError where it is missing, ValueError where it is no such number."""
    value = part[name]
    allowed = (int,) if kind is int else (int, float)
    if type(value) not in allowed or value < least:
        noun = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}={value!r} must be {noun} of at least {least}")
    return value


def read_numbers(part: Fields, name: str) -> tuple[int, ...]:
    """Returns a field that is a list of whole numbers. Raises as read_number()."""
    value = part[name]
    if not isinstance(value, list) or any(type(x) is not int or x < 0 for x in value):
        raise ValueError(f"{name}={value!r} must be a list of whole numbers")
    return tuple(value)
