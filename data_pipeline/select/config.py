"""Configs of selection (standard library only): filters, duplicates, and presets of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from data_pipeline.config import WorkConfig, check_at_least
from data_pipeline.shards.config import ShardConfig


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Filters of samples. Each is off unless its field is set; docs/selection.md describes them."""

    min_words: int = 0
    """Fewest words of the response."""
    max_words: int = 0
    """Most words of the response; 0 sets no limit."""
    max_answer_chars: int = 0
    """Most characters of the reference answer; 0 sets no limit (the RL recipe: 50)."""
    max_images: int | None = None
    """Most images of a sample."""
    format: Literal["none", "think_answer", "mmfinereason"] = "none"
    """Format of the response: <think>..</think><answer>..</answer> and nothing else, or MMFineReason's template."""
    repetition_words: int = 50
    """Length in words of the runs that repetition_count counts."""
    repetition_count: int = 0
    """Drop responses in which one run of words occurs this often (MMFineReason: 3); 0 is off."""
    correct: bool = False
    """Keep only responses that the answer checker found right (metadata accuracy of 1)."""
    min_pass_rate: float | None = None
    """Keep questions that the scoring model answers right at least this often (metadata pass_rate, 0 to 1)."""
    max_pass_rate: float | None = None
    """Keep questions that the scoring model answers right at most this often."""

    def __post_init__(self) -> None:
        check_at_least(self, "filters.", min_words=0, max_words=0, max_answer_chars=0, max_images=0)
        check_at_least(self, "filters.", repetition_words=1, repetition_count=0)
        if 0 < self.max_words < self.min_words:
            raise ValueError(
                f"filters.max_words={self.max_words} is below min_words={self.min_words}; nothing would be kept"
            )
        if self.repetition_count == 1:
            raise ValueError("filters.repetition_count=1 must be 0 or at least 2; the published rule has 3")
        low, high = self.pass_rates
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"filters.min_pass_rate={low} and max_pass_rate={high} must be shares from 0 to 1, in this order"
            )

    @property
    def pass_rates(self) -> tuple[float, float]:
        """The least and the largest pass rate."""
        low, high = self.min_pass_rate, self.max_pass_rate
        return 0.0 if low is None else low, 1.0 if high is None else high


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """The rule by which two samples are duplicates. The earlier one, by order of corpora and rows, is kept."""

    scope: Literal["within", "across", "both"] = "both"
    """Compare samples of one corpus, of different corpora, or all."""
    rule: Literal["each", "joined"] = "each"
    """Text and images must be near, each by its own threshold; or one cosine of their joined vectors."""
    threshold: float = 0.99
    """Least cosine of two texts; with rule=joined, of the joined vectors."""
    image_threshold: float = 0.95
    """Least cosine of two samples' images, with rule=each."""
    same_symbols: bool = True
    """Near texts must agree in numbers, lone letters and operators: questions of one template differ only there."""
    same_answer: bool = True
    """Near samples must agree in their reference answer where both have one; benchmarks are exempt."""
    contamination: Literal["refuse", "report"] = "refuse"
    """Drop samples that are near a benchmark's sample, or only list them."""
    text_encoder: str = "ngrams"
    """ngrams (needs no download), or model2vec:MODEL with a folder or OWNER/NAME on the Hugging Face hub."""
    exact_below: int = 20_000
    """Up to this many kept samples every pair is compared; above, neighbours are found in a graph."""
    threads: int = 0
    """Threads of the search; 0 takes all cores. The result does not depend on it."""

    def __post_init__(self) -> None:
        for name in ("threshold", "image_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"dedup.{name}={getattr(self, name)} is a cosine above 0 and at most 1")
        check_at_least(self, "dedup.", exact_below=0, threads=0)


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Selects samples of shards into other shards."""

    shards: str
    """Folder of shards to select from."""
    out: str
    """Folder for the kept samples, and in dropped/ the ids of the others with the reasons."""
    duplicates: str = ""
    """duplicates.jsonl that `omr data dedup` wrote; what it lists of this folder is dropped first."""
    scores: tuple[str, ...] = ()
    """scores.jsonl files that `omr data score` wrote, of these samples or of the questions they answer."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    max_bad_samples: int | float = 100
    """Unreadable samples are dropped and counted; past this many (100) or this share (0.01) it stops."""
    writer: ShardConfig = field(default_factory=ShardConfig)
    work: WorkConfig = field(default_factory=WorkConfig)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Divides shards into a part for training and one for testing, by image."""

    shards: str
    """Folder of shards to divide."""
    out: str
    """Folder that gets train/ and test/."""
    test: int | float = 0.1
    """Samples of the test part: a number (600) or a share (0.1), at most; samples that share an image stay together."""
    seed: int = 42
    """Decides which images are in the test part."""
    max_bad_samples: int | float = 100
    """Unreadable samples are left out and counted; past this many (100) or this share (0.01) it stops."""
    writer: ShardConfig = field(default_factory=ShardConfig)
    work: WorkConfig = field(default_factory=WorkConfig)

    def __post_init__(self) -> None:
        if self.test <= 0 or (isinstance(self.test, float) and self.test >= 1):
            raise ValueError(f"test={self.test} must be a number of samples, e.g. 600, or a share, e.g. 0.1")


@dataclass(frozen=True, kw_only=True)
class DedupRunConfig:
    """Lists the samples of folders of shards that duplicate others, or a benchmark's."""

    shards: tuple[str, ...]
    """Folders of shards, one corpus each; of two duplicates the one in the earlier folder is kept."""
    out: str = "dedup"
    """Folder for duplicates.jsonl, drop_lists/ and fingerprints/ (which later runs use again)."""
    against: tuple[str, ...] = ()
    """Folders of evaluation benchmarks as shards."""
    dedup: DedupConfig = field(default_factory=DedupConfig)
    shares: int = 1
    """Parts of the comparison, for several workers: samples are divided by their symbols, which duplicates share."""
    max_bad_samples: int | float = 100
    """Unreadable samples are left out and counted; past this many (100) or this share (0.01) it stops."""
    work: WorkConfig = field(default_factory=WorkConfig)

    def __post_init__(self) -> None:
        check_at_least(self, shares=1)


MMFINEREASON = FilterConfig(
    max_images=1,
    min_words=100,
    format="mmfinereason",
    repetition_count=3,
    correct=True,
    max_pass_rate=math.nextafter(1.0, 0.0),
)
"""MMFineReason's three steps and its 586k: questions that a 4B model does not answer right 4 times of 4."""

FILTER_PRESETS = {
    # none: the paper finds that length (-1.0 points) and difficulty (-3.9) filters harm x8 distillation
    "openmmreasoner": FilterConfig(),
    "mmfinereason": MMFINEREASON,
    # its 123k, 7 % of its data: a 4B model answers them right 0 times of 4
    "mmfinereason_hardest": replace(MMFINEREASON, max_pass_rate=0.0),
}
DEDUP_PRESETS = {
    "every_pair": DedupConfig(),
    # The earlier corpus loses nothing, as in the paper; the released code drops from the earlier one instead. The
    # paper's text encoder is model2vec:minishlab/potion-base-8M: set it where it can be downloaded.
    "openmmreasoner": DedupConfig(
        scope="across", rule="joined", threshold=0.99, same_symbols=False, same_answer=False
    ),
}
