"""What a study is: cells that differ in one thing, and what the paper found between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from launch.published.table import PaperRow, PaperTable

Teacher = Literal["weak", "strong"]
Domain = Literal["images", "text"]


@dataclass(frozen=True, kw_only=True)
class Sft:
    """SFT of a base model on a teacher's right responses."""

    teacher: Teacher = "strong"
    asked: int = 8
    """Responses that the teacher gives to each question, of which the right ones are kept."""
    filters: Mapping[str, object] = field(default_factory=dict)
    """Fields of `filters` in `omr data select`."""
    mixed_with: tuple[Domain, ...] = ()
    """Worked questions that are added: about other images, or about digits in the text."""

    @property
    def needs_pass_rates(self) -> bool:
        return not {"min_pass_rate", "max_pass_rate"}.isdisjoint(self.filters)


@dataclass(frozen=True, kw_only=True)
class Rl:
    """RL of a base model."""

    recipe: str = "demo"
    values: Mapping[str, object] = field(default_factory=dict)
    """Fields of the recipe, dotted, that differ in this cell."""
    scored: bool = False
    """Its questions have pass rates, measured on the weak teacher."""


Training: TypeAlias = Sft | Rl | None
"""None: the base model itself."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A row of a study. Cells of one name are the same training in all studies, and run once."""

    name: str
    title: str
    paper: PaperRow
    training: Training

    @property
    def paper_mean(self) -> float:
        """The mean that the paper prints, in percent."""
        assert self.paper.printed_mean is not None, self.paper.name
        return self.paper.printed_mean


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The paper's finding about two cells: `better` scores above `worse`."""

    better: str
    worse: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """An ablation of the paper at the demo's size."""

    summary: str
    """First line of the help."""
    finding: str
    """What the paper found."""
    minutes: int
    """On two cores, alone in its folder: estimated from measured times of stages."""
    table: PaperTable
    """The paper's, whose means of all columns are compared."""
    baseline: str
    """Name of the cell with which the table compares the others."""
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...]

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        assert len(set(names)) == len(names), names
        compared = {self.baseline, *(name for claim in self.claims for name in (claim.better, claim.worse))}
        assert compared <= set(names), compared

    def cell(self, name: str) -> Cell:
        return next(cell for cell in self.cells if cell.name == name)

    def read_points(self, claim: Claim) -> float:
        """Returns how far the better cell is above the worse in the paper, in percentage points."""
        return self.cell(claim.better).paper_mean - self.cell(claim.worse).paper_mean
