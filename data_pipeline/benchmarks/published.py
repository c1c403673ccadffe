"""What OpenMMReasoner's paper (arXiv 2511.16334) reports, to set a run beside it: published.json, read as values.

Scores are percentages, by the names of BENCHMARKS; each is the first number of its metric. Rows are single runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data_pipeline.files import read_json

COLUMNS = (
    "mathvista_testmini",
    "mathvision_test",
    "mathvision_testmini",
    "mathverse_testmini",
    "dynamath",
    "wemath_testmini",
    "logicvista",
    "mmmu_val",
    "mmmu_pro_standard",
    "mmmu_pro_vision",
    "charxiv_reasoning",
    "charxiv_descriptive",
)
"""The twelve columns of the paper's main table, whose mean it quotes."""
TEXT = ("aime24", "aime25", "gpqa_diamond")
"""The benchmarks of its table of text transfer."""
ABLATION = ("mathvision_test", "mathverse_testmini", "mathvista_testmini")
"""The benchmarks whose mean its ablations of data quote."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A row of a table: one model."""

    name: str
    scores: Mapping[str, float]  # percentages
    reproduced: tuple[str, ...] = ()  # benchmarks on which the paper's authors ran another's model themselves
    start: str = ""  # of RL: the SFT that it starts from

    def mean(self, benchmarks: tuple[str, ...]) -> float | None:
        """Returns the mean over benchmarks; None where one of them is not reported."""
        if not all(name in self.scores for name in benchmarks):
            return None
        return sum(self.scores[name] for name in benchmarks) / len(benchmarks)


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table of the paper."""

    title: str
    source: str
    rows: tuple[PublishedRow, ...]

    def row(self, name: str, *, start: str = "") -> PublishedRow:
        """Returns a row by its name and, in the table of RL, its start; raises KeyError where there is none."""
        for row in self.rows:
            if (row.name, row.start) == (name, start):
                return row
        raise KeyError(f"{self.title} has no row {name!r} of start {start!r}")


@dataclass(frozen=True, kw_only=True)
class PublishedPoint:
    """Accuracy (a percentage) at a mean length of responses; of checkpoints other than the main table's."""

    name: str
    benchmark: str
    accuracy: float
    tokens: float


@cache
def published_tables() -> Mapping[str, PublishedTable]:
    """Returns the tables by name: main, text, rl and those of ablations."""
    return {name: _read_table(table) for name, table in _read()["tables"].items()}


@cache
def published_points() -> tuple[PublishedPoint, ...]:
    """Returns the points of the figure of accuracy against tokens."""
    return tuple(PublishedPoint(**point) for point in _read()["tokens"]["points"])


def _read_table(table: Mapping[str, Any]) -> PublishedTable:
    rows = (PublishedRow(**row | {"reproduced": tuple(row.get("reproduced", ()))}) for row in table["rows"])
    return PublishedTable(title=table["title"], source=table["source"], rows=tuple(rows))


@cache
def _read() -> Mapping[str, Any]:
    return read_json(Path(__file__).with_name("published.json"))
