"""Configs of the answer checker (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.config import check_at_least
from data_pipeline.served.config import JudgeConfig

Mode = Literal["strict", "released"]


@dataclass(frozen=True, kw_only=True)
class CheckerConfig:
    """Rules of the answer checker, and limits of its processes."""

    mode: Mode = "strict"
    """Rules: strict, or those of the published reward with its faults."""
    workers: int = 2
    """Processes that run math-verify."""
    deadline: float = 5.0
    """Seconds of a processor's time that one response may take; past it the response counts as wrong."""

    def __post_init__(self) -> None:
        check_at_least(self, "checker.", workers=1)
        if self.deadline <= 0:
            raise ValueError(f"checker.deadline={self.deadline:g} must be above 0 seconds")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Score the responses in a file of JSON lines."""

    source: str
    """JSON lines with response (what a model wrote) and answer (the reference); other fields are kept."""
    out: str
    """File for the same lines with accuracy, format, extracted and decided_by; it appears when all are scored."""
    checker: CheckerConfig = field(default_factory=CheckerConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    max_bad_lines: int | float = 100
    """Lines without JSON, a field or a reference are left out; past this many (50) or this share (0.05) it stops."""

    def __post_init__(self) -> None:
        check_at_least(self, max_bad_lines=0)
