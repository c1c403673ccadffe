"""A response with its verdict: the one record on disk of distillation, evaluation, rewards and the report.

Files hold one JSON object a line, with every field. A stage that stores more extends ScoredResponse.

>>> from data_pipeline.verify.check import check_answer
>>> scored = ScoredResponse(id="q7", answer="12", response="<answer>12</answer>")
>>> scored = scored.with_verdict(check_answer("<answer>12</answer>", "12"))
>>> ScoredResponse.from_json(scored.to_json()) == scored
True
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Self, TypeVar, get_args, get_origin, get_type_hints

from data_pipeline.errors import describe
from data_pipeline.files import to_json
from data_pipeline.verify.check import Verdict

R = TypeVar("R", bound="ScoredResponse")


@dataclass(frozen=True, kw_only=True)
class ScoredResponse(Verdict):
    """One response to a question, with the verdict on it; `decided_by` is empty until it is checked."""

    id: str  # of the sample that asks
    rollout: int = 0  # number of the response among those to the same question
    source: str = ""  # the question's corpus
    kind: str = ""  # the question's metadata["kind"]
    answer: str = ""  # the reference
    response: str | None = None  # None: the model returned none
    response_len: int = 0  # tokens
    finish_reason: str = ""  # stop | length | ...
    reward: float | None = None  # in RL
    accuracy: float = 0.0
    format: float = 0.0
    extracted: str = ""
    decided_by: str = ""

    def with_verdict(self, verdict: Verdict) -> Self:
        """Returns the record with the fields of `verdict`."""
        return replace(self, **asdict(verdict))

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Parses a line; ignores fields that the record does not have.

        Raises:
            ValueError: it is not a JSON object, lacks a field, or a field has another type.
        """
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        if not isinstance(row, dict):
            raise ValueError(f"wanted a JSON object, saw {describe(row)}")
        wanted = _field_types(cls)
        for name, types in wanted.items():
            if name not in row:
                raise ValueError(f"{name} is missing")
            if type(row[name]) not in types:
                names = " or ".join(each.__name__ for each in types)
                raise ValueError(f"{name}: wanted {names}, saw {describe(row[name])}")
        return cls(**{name: row[name] for name in wanted})

    def to_json(self) -> bytes:
        """Returns the record as a line, in ASCII: a response may hold half a surrogate pair."""
        return to_json(asdict(self)).encode() + b"\n"


def read_responses(path: Path, record: type[R] = ScoredResponse) -> Iterator[R]:
    """Yields the records of a file; raises ValueError, naming file, line and fault, if a line is none."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield record.from_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error


@cache
def _field_types(record: type[ScoredResponse]) -> Mapping[str, tuple[type, ...]]:
    """Returns the Python types that JSON may give each field; a whole number stands for a float, too."""
    found = {}
    for name, hint in get_type_hints(record).items():
        types = get_args(hint) if isinstance(hint, UnionType) else (get_origin(hint) or hint,)
        found[name] = (*types, int) if float in types else types
    return found
