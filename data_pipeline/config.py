"""Configs of the data pipeline (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How an image becomes patches. Trainer and engine share one, so that they count the same tokens."""

    min_pixels: int = 3_136
    """Smaller images are scaled up to this area."""
    max_pixels: int = 4_194_304
    """Larger images are scaled down to this area (2048 x 2048, the published intent)."""

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"image.min_pixels={self.min_pixels} must be positive and at most "
                f"image.max_pixels={self.max_pixels}; set e.g. 3136 and 4194304"
            )


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """From shards to packed micro-batches."""

    shards: str = ""
    """Folder with index.json and the .tar shards that `omr data` wrote."""
    global_batch_size: int = 32
    """Samples per optimizer step, over all data-parallel ranks."""
    pack_length: int = 61_440
    """Most tokens in one packed micro-batch; longer samples are dropped and counted."""
    seed: int = 42
    """Seeds the order of every epoch."""
    max_bad_samples: int = 100
    """Unreadable samples are skipped and counted; past this many, loading stops."""
    num_workers: int = 1
    """Threads that read, decode and tokenise ahead of the trainer; 0 works in line."""

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "pack_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Score the answers in a file of JSON lines."""

    source: str
    """JSON lines, each with response (what a model wrote) and answer (the reference); other fields are kept."""
    out: str
    """The same lines with accuracy, format, extracted and decided_by; it appears when all are scored."""
    mode: Literal["strict", "released"] = "strict"
    """Rules: strict, or those of the published reward, faults included."""
    workers: int = 2
    """Processes that ask math-verify."""
    deadline: float = 5.0
    """Seconds one answer may take; past it the answer is counted as wrong."""
    max_bad_lines: int = 100
    """Lines that are not JSON or lack a field are named and left out; past this many, scoring stops."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.deadline <= 0 or self.max_bad_lines < 0:
            raise ValueError(
                f"workers={self.workers} must be at least 1, deadline={self.deadline} above 0 seconds and "
                f"max_bad_lines={self.max_bad_lines} 0 or more"
            )
