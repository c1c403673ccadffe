"""Configs of the loader and of mixtures of shards (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_pipeline.config import check_at_least
from data_pipeline.encode.config import LossOn


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Reading, shuffling and packing of shards for the trainer."""

    shards: str = ""
    """Shards that `omr data` wrote, or a mixture of `omr data mix`: a folder, or an address (https://, s3://, ...)."""
    global_batch_size: int = 32
    """Samples per optimizer step, over all data-parallel ranks."""
    pack_length: int = 61_440
    """Most tokens in one packed micro-batch; longer samples are dropped and counted."""
    packing: Literal["first_fit", "next_fit"] = "first_fit"
    """first_fit balances ranks by cost and fills packs well; next_fit, the released recipe's way, gives each rank an
    equal number of samples in order, and opens a new pack where the next one does not fit."""
    loss_mean: Literal["tokens", "packs"] = "tokens"
    """The loss is the mean over the learned tokens of a step, or, as in the released recipe, the mean over its packs
    of each pack's mean, in which tokens of a pack with few learned ones weigh more."""
    loss_on: LossOn = "all"
    """Learn all turns of the assistant, or only the last of each conversation."""
    seed: int = 42
    """Seeds the order of every epoch."""
    max_bad_samples: int | float = 100
    """Unreadable samples are skipped and counted; past this count (or share, such as 0.01) loading stops."""
    num_workers: int = 1
    """Threads that read, decode and tokenise ahead; 0 works in line. Shards at an address need more threads."""
    prefetch: int = 2
    """Steps that the threads prepare ahead."""

    def __post_init__(self) -> None:
        check_at_least(self, "loader.", global_batch_size=1, pack_length=1, prefetch=1)
        check_at_least(self, "loader.", max_bad_samples=0, num_workers=0)


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixes several folders of shards into one."""

    shards: tuple[str, ...]
    """Folders of shards, or their addresses."""
    out: str = ""
    """Folder for mixture.json; it is read like a folder of shards."""
    samples: int = 0
    """Samples of an epoch; 0 takes all."""
    weights: str = ""
    """Shares of the sources, by the last part of their places, such as mmk12=2,tqa=0.5; the default is 1."""
    counts: str = ""
    """Samples of each source in an epoch, instead of weights, such as mmk12=5000,tqa=800; the default is 0."""
    max_epochs: float = 1.0
    """Most passes over a source in one epoch of the mixture; the others make up for the rest."""
    seed: int = 42
    """Decides which samples of a source come first."""

    def __post_init__(self) -> None:
        if not self.out or not self.shards:
            raise ValueError(
                f"out={self.out!r} and shards={self.shards} must both be given: shards/a shards/b --out shards/mix"
            )
        if self.counts and (self.weights or self.samples):
            raise ValueError("counts exclude weights and samples; give either counts, or weights and samples")
        if len(set(self.shards)) != len(self.shards):
            raise ValueError(f"shards={' '.join(self.shards)} names one twice; raise its weight instead")
        if self.samples < 0 or self.max_epochs <= 0 or self.seed < 0:
            raise ValueError(
                f"samples={self.samples} and seed={self.seed} must be 0 or more, max_epochs={self.max_epochs} above 0"
            )
