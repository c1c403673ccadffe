"""Configs of writing, validating and inspecting shards (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.config import WorkConfig, check_at_least
from data_pipeline.encode.config import ImageConfig, LimitsConfig


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Sizes of the shards that are written, and a cap for their images."""

    target_bytes: int = 268_435_456
    """A .tar is closed when it reaches this size; 256 MiB reads at full speed and downloads in a second or two."""
    samples_per_shard: int = 10_000
    """Or this many samples, whichever comes first."""
    max_pixels: int = 0
    """Larger images are scaled down to this area and encoded again; 0 leaves every image as it is."""

    def __post_init__(self) -> None:
        check_at_least(self, "writer.", target_bytes=1, samples_per_shard=1, max_pixels=0)
        if 0 < self.max_pixels < ImageConfig.min_pixels:
            raise ValueError(
                f"writer.max_pixels={self.max_pixels} must be 0 for no cap, or at least {ImageConfig.min_pixels}, "
                "below which images would be scaled up again"
            )


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(LimitsConfig):
    """Finds what is broken in a folder of shards."""

    shards: str
    """Folder of shards, a mixture of such folders, or any WebDataset folder."""
    quick: bool = False
    """Check only index, names and sizes; no shard is read."""
    images: bool = False
    """Decode every image in full, not only its header."""
    json: bool = False
    """Print the whole report as JSON."""
    work: WorkConfig = field(default_factory=WorkConfig)


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Draws samples of a folder of shards on a page."""

    shards: str
    """Folder with index.json and the .tar shards."""
    samples: int = 24
    """Number of samples on the page."""
    seed: int = 0
    """Seeds their choice."""
    out: str = "inspect.html"
    """Path of the page."""

    def __post_init__(self) -> None:
        check_at_least(self, samples=1)
