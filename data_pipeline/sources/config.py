"""Configs of importing a corpus (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.config import WorkConfig, check_at_least
from data_pipeline.encode.config import LimitsConfig
from data_pipeline.shards.config import ShardConfig


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """Selects the frames of videos, for trainer and engine alike."""

    fps: float = 2.0
    """Frames of a second of a video that are kept."""
    max_frames: int = 64
    """Most frames of a video; of a longer one as many, evenly spread."""
    max_pixels: int = 602_112
    """Larger frames of a video file are scaled down to this area."""

    def __post_init__(self) -> None:
        check_at_least(self, "rows.frames.", max_frames=1, max_pixels=3_136)
        if not 0 < self.fps < float("inf"):
            raise ValueError(f"rows.frames.fps={self.fps} must be above 0, e.g. 2")


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Selects the rows of a corpus."""

    path: str
    """A file (JSON lines, JSON, Parquet, WebDataset tar), a folder of them, or OWNER/NAME on the Hugging Face hub."""
    images: str = ""
    """Folder that paths of images and videos in rows are relative to; by default the folder of `path`."""
    split: str = ""
    """A split such as train: in a folder the files named after it, everything if empty; on the hub train if empty."""
    subset: str = ""
    """Configuration of a dataset on the hub, such as virl39k of OpenMMReasoner/OpenMMReasoner-RL-74K."""
    revision: str | None = None
    """Commit or tag of a dataset on the hub; by default its newest."""
    system_prompt: bool = True
    """Put the recipe's system prompt before conversations that have none."""
    frames: FramesConfig = field(default_factory=FramesConfig)


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Imports the rows of a corpus as samples in shards."""

    rows: RowsConfig
    out: str
    """Folder that gets index.json and the .tar shards."""
    limit: int = 0
    """Most samples to write; 0 writes all."""
    max_bad_samples: int | float = 0.05
    """Bad rows are dropped and counted; above this number (50) or share (0.05) the import stops."""
    writer: ShardConfig = field(default_factory=ShardConfig)
    work: WorkConfig = field(default_factory=WorkConfig)

    def __post_init__(self) -> None:
        check_at_least(self, limit=0, max_bad_samples=0)


@dataclass(frozen=True, kw_only=True)
class CheckRowsConfig(LimitsConfig):
    """Compares the first rows of a corpus with what its adapter reads; writes nothing."""

    rows: RowsConfig
    count: int = 100
    """Rows to check."""

    def __post_init__(self) -> None:
        check_at_least(self, count=1)
