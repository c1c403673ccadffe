"""Configs of reading a corpus (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.config import WorkConfig
from data_pipeline.shards.config import ShardConfig


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Which rows of a corpus are read."""

    path: str
    """A file (JSON lines, JSON, Parquet, WebDataset tar), a folder of them, or OWNER/NAME on the Hugging Face hub."""
    images: str = ""
    """Folder that the rows' image paths are relative to; by default the one that `path` lies in."""
    split: str = ""
    """A split such as train: in a folder the files called after it, everything if empty; on the hub train if empty."""
    subset: str = ""
    """Configuration of a dataset on the hub, such as virl39k of OpenMMReasoner/OpenMMReasoner-RL-74K."""
    system_prompt: bool = True
    """Put the recipe's system prompt before conversations that have none."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Rows of a corpus -> samples in shards."""

    rows: RowsConfig
    out: str
    """Folder that gets index.json and the .tar shards."""
    limit: int = 0
    """Most samples to write; 0 writes all."""
    max_bad_samples: int | float = 0.05
    """Rows that do not fit are dropped and counted; past this many (50) or this share (0.05) the import stops."""
    writer: ShardConfig = field(default_factory=ShardConfig)
    work: WorkConfig = field(default_factory=WorkConfig)

    def __post_init__(self) -> None:
        for name in ("limit", "max_bad_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class CheckRowsConfig:
    """The first rows of a corpus against what its adapter wants; writes nothing."""

    rows: RowsConfig
    count: int = 100
    """Rows to look at."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} must be at least 1")
