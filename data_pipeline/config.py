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
class ImportConfig(RowsConfig):
    """Rows of a corpus -> samples in shards."""

    out: str
    """Folder that gets index.json and the .tar shards."""
    limit: int = 0
    """Most samples to write; 0 writes all."""
    max_bad_samples: float = 0.05
    """Rows that do not fit are dropped and counted; past this many (from 1 on) or this share (below 1) it stops."""
    samples_per_shard: int = 1_000
    """Samples in one .tar."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 0), ("max_bad_samples", 0), ("samples_per_shard", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(RowsConfig):
    """The first rows of a corpus against what its adapter wants; writes nothing."""

    rows: int = 100
    """Rows to look at."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows={self.rows} must be at least 1")


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
    judge: str = ""
    """URL of an OpenAI-compatible server whose model judges what the rules find wrong; empty asks none."""
    judge_model: str = ""
    """The judge's model; empty takes the only one that is served."""
    judge_key_env: str = ""
    """Environment variable that holds the judge's key."""
    max_bad_lines: int = 100
    """Lines that are not JSON or lack a field are named and left out; past this many, scoring stops."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.deadline <= 0 or self.max_bad_lines < 0:
            raise ValueError(
                f"workers={self.workers} must be at least 1, deadline={self.deadline} above 0 seconds and "
                f"max_bad_lines={self.max_bad_lines} 0 or more"
            )
