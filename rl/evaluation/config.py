"""Config of an evaluation on published benchmarks (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.config import check_at_least
from data_pipeline.encode.config import ImageConfig
from rl.config import EngineConfig
from rl.rewards.config import RewardConfig


@dataclass(frozen=True, kw_only=True)
class OverrideConfig:
    """How all benchmarks are asked, where it is not as published; the table names each of these."""

    n: int | None = None
    """Responses to each question."""
    temperature: float | None = None
    """Temperature of sampling; 0 is greedy."""
    top_p: float | None = None
    """Share of the probability that is sampled from."""
    max_tokens: int | None = None
    """Longest response, in tokens."""

    @property
    def given(self) -> dict[str, int | float]:
        """The fields that are set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class BenchmarksConfig:
    """Score a Hugging Face folder on published benchmarks, each asked and scored as published."""

    model: str = ""
    """Hugging Face folder; must be given."""
    out: str = "runs/benchmarks"
    """Folder of this model's results: scores.md and scores.json, and a folder for each benchmark."""
    root: str = "data/benchmarks"
    """Folder with the shards of benchmarks, ROOT/NAME; what it lacks is imported once."""
    path: str = ""
    """What to import from: the file or folder of a benchmark, or a folder with downloads, as NAME, OWNER/DATASET or
    DATASET; by default the published datasets on the hub."""
    subset: int = 0
    """Questions of each benchmark, drawn by the seed, for first numbers that soon have their intervals; 0 asks all. A
    larger subset holds the smaller one."""
    seed: int = 42
    """Seeds the bootstrap of the confidence intervals (and sampling, when the temperature is not 0)."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(max_model_len=131_072, max_images=32))
    """engine.max_model_len is an upper bound: engines start for what the questions and responses need, and at most for
    the model's context."""
    sampling: OverrideConfig = field(default_factory=OverrideConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    image: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is missing: give a Hugging Face folder as --model")
        check_at_least(self, subset=0)
        if self.reward.correct_by != "accuracy":
            raise ValueError(
                f"reward.correct_by={self.reward.correct_by} must be accuracy: a benchmark says how it is scored"
            )
