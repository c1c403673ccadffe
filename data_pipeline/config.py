"""Config of how a stage's parts are run, and checks that all configs share (standard library only)."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal


def check_at_least(config: object, section: str = "", **least: float) -> None:
    """Raises ValueError for a field below its least value (None passes); names it with `section`, as in options."""
    for name, value in least.items():
        seen = getattr(config, name)
        if seen is not None and seen < value:
            raise ValueError(f"{section}{name}={seen} must be at least {value}")


def check_unused(config: object, section: str, *, switch: str) -> None:
    """Raises ValueError for a field of a dataclass that is not at its default while the field `switch` is off."""
    for field in fields(config) if not getattr(config, switch) else ():  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if field.name != switch and value != field.default:
            raise ValueError(
                f"{section}{field.name}={value} does nothing without {section}{switch}; set that, or leave "
                f"{field.name} at {field.default}"
            )


def check_address(place: str | Path) -> None:
    """Raises ValueError if an address holds a query, or a name or key before an @: addresses are saved and logged."""
    # not a text that mentions one: addresses hold no spaces
    if found := re.fullmatch(r"\S*?(\w+)://([^/?@\s]*(@)|\S*\?)\S*", str(place)):
        part = "a name or key before its @" if found[3] else "a query after its ?"
        raise ValueError(
            f"the address {found[1]}://... has {part}, and addresses are saved and logged; keys belong into "
            "environment variables: use api_key_env for a server, AWS_SECRET_ACCESS_KEY and the like for a store"
        )


@dataclass(frozen=True, kw_only=True)
class WorkConfig:
    """Workers and executor that run the parts of a stage."""

    workers: int = 1
    """Parts that run at the same time; with Ray, 0 uses the whole cluster."""
    executor: Literal["local", "ray"] = "local"
    """Run parts on this machine, or on a Ray cluster."""

    def __post_init__(self) -> None:
        if self.workers < (0 if self.executor == "ray" else 1):
            raise ValueError(
                f"work.workers={self.workers} must be at least 1; with work.executor=ray, 0 uses the whole cluster"
            )
