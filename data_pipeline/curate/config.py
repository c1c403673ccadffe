"""Configs of a curation, from corpora to a mixture of shards (standard library only)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from data_pipeline.config import WorkConfig, check_at_least
from data_pipeline.distill.config import AssignConfig, Keep, TeacherConfig
from data_pipeline.select.config import DedupConfig, FilterConfig
from data_pipeline.shards.config import ShardConfig
from data_pipeline.sources.config import RowsConfig

NAME = re.compile(r"[\w-]+")
SHARDS = "shards"
"""As `corpus` of a source: rows.path holds shards already, nothing is imported."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus of a curation."""

    name: str
    """Name of its folders."""
    corpus: str
    """Its adapter (see `omr data import`), or `shards` where rows.path holds shards already."""
    rows: RowsConfig
    responses: Literal["keep", "distill"] = "keep"
    """Keep the responses of the corpus, or ask the teachers its questions and keep right responses."""
    max_bad_samples: int | float = 0.05
    """Rows that do not fit are dropped and counted; past this many (50) or this share (0.05) it stops."""


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """All stages from corpora to a mixture of shards; funnel.json holds the counts of each."""

    out: str
    """Folder of all stages; the same command continues there."""
    sources: tuple[SourceConfig, ...]
    """The corpora. Of two duplicates the question in the earlier corpus is kept."""
    questions: FilterConfig = field(default_factory=FilterConfig)
    """Filters of questions, before a teacher is asked."""
    deduplicate: bool = True
    """Drop questions that duplicate others, or a benchmark's."""
    dedup: DedupConfig = field(default_factory=DedupConfig)
    against: tuple[str, ...] = ()
    """Folders of evaluation benchmarks as shards."""
    teachers: tuple[TeacherConfig, ...] = field(default_factory=lambda: (TeacherConfig(),))
    """The models that answer the questions of sources with responses=distill, in the order of a cascade."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    per_question: int = 8
    """Right responses of the teachers to keep of each question: 1, 2, 4 or 8 give the paper's x1 to x8."""
    keep: Keep = "first"
    """Which ones: the first, those with the likeliest answer, or the likeliest as a whole."""
    difficulty: bool = False
    """Ask a student before, for the pass rates that `assign` or a filter of `responses` needs."""
    student: TeacherConfig = field(default_factory=lambda: TeacherConfig(k=4))
    """The model whose pass rates say how difficult a question is."""
    responses: FilterConfig = field(default_factory=FilterConfig)
    """Filters of responses."""
    weights: str = ""
    """Weights of the sources in the mixture, e.g. mmr1=2; 1 where not given. See `omr data mix`."""
    samples: int = 0
    """Most samples of the mixture's epoch; 0 takes all."""
    max_epochs: float = 1.0
    """Most times that a source is repeated in one epoch of the mixture."""
    seed: int = 42
    """Seeds the mixture."""
    writer: ShardConfig = field(default_factory=ShardConfig)
    work: WorkConfig = field(default_factory=WorkConfig)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names) or not all(map(NAME.fullmatch, names)):
            raise ValueError(
                f"sources={names} must be at least one, each with another name, of letters, digits, - and _"
            )
        check_at_least(self, per_question=1, samples=0)
        if not self.out or self.max_epochs <= 0:
            raise ValueError(f"out={self.out!r} must be a folder, max_epochs={self.max_epochs:g} above 0")
        weighted = [pair.rpartition("=")[0] for pair in filter(None, self.weights.split(","))]
        if unknown := set(weighted) - set(names):
            raise ValueError(
                f"weights={self.weights!r} names {unknown.pop()!r}, not one of {', '.join(names)}"
            )
        if self.against and not self.deduplicate:
            raise ValueError("against names benchmarks, but deduplicate is off; turn it on to refuse them")
        self.assign.check(self.teachers)
        rates = (self.responses.min_pass_rate, self.responses.max_pass_rate)
        if self.difficulty and rates == (None, None) and not self.assign.needs_pass_rates:
            raise ValueError(
                "difficulty asks a student, but neither assign nor a filter of responses uses pass rates; set one"
            )
        if self.assign.needs_pass_rates and not self.difficulty:
            raise ValueError("assign needs a student's pass rates, but difficulty is off; turn it on")
