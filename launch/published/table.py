"""A table of a paper: rows of scores in per cent by benchmark, read from a text that is laid out as printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

MISSING, REPRODUCED = "-", "†"


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A model, or a setting of an ablation."""

    name: str
    scores: Mapping[str, float]
    """In per cent, by benchmark as the registry names it; what the paper leaves open is not there."""
    reproduced: frozenset[str] = frozenset()
    """Benchmarks whose number the paper's authors measured themselves, where the model's own authors gave none (†)."""
    printed_mean: float | None = None
    """The mean as the paper prints it, where it prints one; `PaperTable.mean` computes it."""


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """Rows of the same columns, by name."""

    source: str
    """Paper and table."""
    title: str
    columns: tuple[str, ...]
    """Benchmarks as the registry names them."""
    rows: Mapping[str, PaperRow] = field(default_factory=dict)

    def mean(self, name: str) -> float | None:
        """Returns the mean of a row over all columns, in per cent; None where one is missing."""
        scores = self.rows[name].scores
        return fmean(scores[column] for column in self.columns) if len(scores) == len(self.columns) else None


def read_table(source: str, title: str, columns: Sequence[str], text: str) -> PaperTable:
    """Returns the table whose rows are the lines of `text`: name | number of each column [| printed mean]."""
    rows = [_read_row(line, columns) for line in text.strip().splitlines()]
    return PaperTable(
        source=source, title=title, columns=tuple(columns), rows={row.name: row for row in rows}
    )


def _read_row(line: str, columns: Sequence[str]) -> PaperRow:
    name, numbers, *printed = (part.strip() for part in line.split("|"))
    cells = dict(zip(columns, numbers.split(), strict=True))
    return PaperRow(
        name=name,
        scores={
            column: float(cell.removesuffix(REPRODUCED)) for column, cell in cells.items() if cell != MISSING
        },
        reproduced=frozenset(column for column, cell in cells.items() if cell.endswith(REPRODUCED)),
        printed_mean=float(printed[0]) if printed else None,
    )
