"""A response with its verdict: the one record on disk of distillation, evaluation, rewards and the report.

One JSON object a line. `answer` is the reference and `response` what a model wrote; `omr verify` reads such files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from data_pipeline.verify.check import Verdict

R = TypeVar("R", bound="ScoredResponse")


@dataclass(frozen=True, kw_only=True)
class ScoredResponse(Verdict):
    """One response to a question, and the checker's verdict on it."""

    id: str  # of the sample that asks
    rollout: int = 0  # number of the response among those to the same question
    source: str = ""  # the question's corpus
    kind: str = ""  # the question's metadata["kind"]
    answer: str = ""  # the reference
    response: str | None = None  # None: none came
    response_len: int = 0  # tokens
    finish_reason: str = ""  # stop | length | ...
    reward: float | None = None  # in RL

    @classmethod
    def from_json(cls: type[R], line: str | bytes) -> R:
        """Parses a line; fields of other records are left out.

        Raises:
            ValueError: it is not the record's.
        """
        row = json.loads(line)
        names = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in row.items() if name in names})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a scored response: {error}") from error

    def to_json(self) -> bytes:
        """Returns the record as a line."""
        return json.dumps(asdict(self), ensure_ascii=True).encode() + b"\n"


def read_responses(path: Path, record: type[R] = ScoredResponse) -> Iterator[R]:
    """Yields the records of a file.

    Raises:
        ValueError: a line is not one; names file and line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield record.from_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
