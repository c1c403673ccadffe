"""Bad records: the error that names one, the words for a row that does not fit, and the budget for many.

>>> budget = ErrorBudget(limit=0.05, option="max_bad_samples", fix="repair the rows, or raise the limit")
>>> budget.add("mine.jsonl, row 3", column_error("answer", "text", None, "fill the column"))
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

REASONS = (
    "unreadable",
    "checksum",
    "schema",
    "image",
    "video",
    "audio",
    "text",
    "answer",
    "no_reference",
    "too_long",
)
MIN_RECORDS = 100
"""Records that must have been seen before a share of them is judged; at the end any number is."""


class BadSample(ValueError):
    """The data is wrong, not the code. The sample is skipped and counted by `reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it can be pickled
        self.reason = reason  # one of REASONS

    def __str__(self) -> str:
        return ": ".join(self.args)


@dataclass(kw_only=True)
class ErrorBudget:
    """Counts bad records by reason, and raises once there are more than `limit`.

    The type of the limit says what it is: an int is a number of records, a float a share of the records seen.
    """

    limit: int | float
    option: str  # the config field that sets the limit, for the message
    fix: str  # what the user can do
    records: str = "samples"
    unlimited: Collection[str] = ()  # reasons that are counted but never exceed the limit
    seen: int = 0  # good and bad; only a share needs it
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)  # reason -> its first case

    def __post_init__(self) -> None:
        if isinstance(self.limit, float) and self.limit > 1:
            raise ValueError(
                f"{self.option}={self.limit} is a share of the {self.records} and must be at most 1; give a "
                "number of them without a decimal point"
            )

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, place: str, error: BadSample) -> None:
        """Counts one bad record; raises ValueError past the limit."""
        self.count(error.reason, f"{place}: {error}")
        self.check()

    def count(self, reason: str, case: str, count: int = 1) -> None:
        """Counts without checking, for example what another process found."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, case)

    def merge(self, other: ErrorBudget) -> None:
        """Adds the counts of a later part of the same input."""
        self.seen += other.seen
        for reason, count in other.counts.items():
            self.count(reason, other.first[reason], count)

    def check(self, *, at_end: bool = False) -> None:
        """Raises ValueError past the limit, with counts and first cases; a share needs MIN_RECORDS, or `at_end`."""
        is_share = isinstance(self.limit, float)
        if is_share and self.seen < MIN_RECORDS and not at_end:
            return
        bad = sum(count for reason, count in self.counts.items() if reason not in self.unlimited)
        if bad <= (self.limit * self.seen if is_share else self.limit):
            return
        of = f" of {self.seen}" if self.seen else ""
        raise ValueError(
            f"{bad}{of} {self.records} are bad, more than {self.option}={self.limit:g} allows:\n"
            f"{self.cases()}\n{self.fix}"
        )

    def cases(self) -> str:
        """Returns a line per reason, the most frequent first: the count and the first case."""
        ordered = sorted(self.counts.items(), key=lambda item: -item[1])
        return "\n".join(f"  {count} {reason}, the first: {self.first[reason]}" for reason, count in ordered)


def name_counts(prefix: str, counts: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics: the number of all bad records under `prefix`, and of each reason under `prefix`_REASON."""
    named = {f"{prefix}_{reason}": count for reason, count in sorted(counts.items()) if count}
    return {prefix: sum(counts.values()), **named}


def column_error(column: str, wanted: str, seen: object, fix: str) -> BadSample:
    """Returns the error of a row whose column is missing or holds something else."""
    return BadSample("schema", f"{column}: wanted {wanted}, saw {describe(seen)}; {fix}")


def describe(value: object) -> str:
    """Returns a value in a few words, for messages."""
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
