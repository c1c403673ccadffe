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
    """Shards that `omr data` wrote, or a mixture of `omr data mix`: a folder, or an address (https://, s3://, ...)."""
    global_batch_size: int = 32
    """Samples per optimizer step, over all data-parallel ranks."""
    pack_length: int = 61_440
    """Most tokens in one packed micro-batch; longer samples are dropped and counted."""
    seed: int = 42
    """Seeds the order of every epoch."""
    max_bad_samples: int = 100
    """Unreadable samples are skipped and counted; past this many, loading stops."""
    num_workers: int = 1
    """Threads that read, decode and tokenise ahead of the trainer; 0 works in line. Shards at an address want more."""
    prefetch: int = 2
    """Steps that the threads prepare ahead."""

    def __post_init__(self) -> None:
        least = {
            "global_batch_size": 1,
            "pack_length": 1,
            "max_bad_samples": 0,
            "num_workers": 0,
            "prefetch": 1,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"loader.{name}={getattr(self, name)} must be at least {value}")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Folders of shards -> a mixture of them."""

    sources: tuple[str, ...]
    """Folders of shards, or their addresses."""
    out: str = ""
    """Folder that gets mixture.json; loader and prompts take it like a folder of shards."""
    samples: int = 0
    """Samples of an epoch; 0 takes all that there are."""
    weights: str = ""
    """Shares of the sources, by the last part of their names, e.g. mmk12=2,tqa=0.5; 1 where nothing is said."""
    counts: str = ""
    """Samples of each source in an epoch, instead of weights, e.g. mmk12=5000,tqa=800; 0 where nothing is said."""
    max_epochs: float = 1.0
    """How often a source may come in one epoch of the mixture; what it cannot give the others do."""
    seed: int = 42
    """Decides which samples of a source come first."""

    def __post_init__(self) -> None:
        if not self.out or not self.sources:
            raise ValueError(
                f"out={self.out!r} and sources={self.sources} must both be given: shards/a shards/b --out shards/mix"
            )
        if self.counts and (self.weights or self.samples):
            raise ValueError("counts say all; leave out weights and samples, or give these instead of counts")
        if len(set(self.sources)) != len(self.sources):
            raise ValueError(
                f"sources={' '.join(self.sources)} names one twice; use --weights to take more of it"
            )
        if self.samples < 0 or self.max_epochs <= 0 or self.seed < 0:
            raise ValueError(
                f"samples={self.samples} and seed={self.seed} must be 0 or more, max_epochs={self.max_epochs} above 0"
            )


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
class ShardConfig:
    """How samples are cut into shards."""

    target_bytes: int = 268_435_456
    """A .tar is closed when it reaches this size (256 MiB: read at full speed, a second or two of a download)."""
    samples_per_shard: int = 10_000
    """Or this many samples, whichever comes first."""
    max_pixels: int = 0
    """Larger images are scaled down to this area and written anew; 0 leaves every image as it is."""

    def __post_init__(self) -> None:
        for name, least in (("target_bytes", 1), ("samples_per_shard", 1), ("max_pixels", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if 0 < self.max_pixels < ImageConfig.min_pixels:
            raise ValueError(
                f"max_pixels={self.max_pixels} must be 0 for no cap, or at least {ImageConfig.min_pixels}, below which "
                "images would be scaled up again"
            )


@dataclass(frozen=True, kw_only=True)
class WorkConfig:
    """Who does a stage's parts."""

    workers: int = 1
    """Parts that are worked on at the same time; on Ray 0 takes the whole cluster."""
    executor: Literal["local", "ray"] = "local"
    """Where they run: on this machine, or on a Ray cluster."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig(WorkConfig, ShardConfig, RowsConfig):
    """Rows of a corpus -> samples in shards."""

    out: str
    """Folder that gets index.json and the .tar shards."""
    limit: int = 0
    """Most samples to write; 0 writes all."""
    max_bad_samples: float = 0.05
    """Rows that do not fit are dropped and counted; past this many (from 1 on) or this share (below 1) it stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("limit", "max_bad_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(RowsConfig):
    """The first rows of a corpus against what its adapter wants; writes nothing."""

    rows: int = 100
    """Rows to look at."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows={self.rows} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(WorkConfig):
    """Find what is broken in a folder of shards."""

    folder: str
    """Folder of shards: ours, a mixture of such, or any WebDataset."""
    quick: bool = False
    """Only what the index, names and sizes tell; no shard is read."""
    images: bool = False
    """Decode every image in full, not only its header."""
    json: bool = False
    """Print the whole report as JSON."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Draw samples of a folder of shards on a page."""

    folder: str
    """Folder with index.json and the .tar shards."""
    sample: int = 24
    """Samples on the page."""
    seed: int = 0
    """Which ones."""
    out: str = "inspect.html"
    """The page."""

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise ValueError(f"sample={self.sample} must be at least 1")


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
