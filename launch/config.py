"""Configs of the demo and its data (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DemoAlgorithm = Literal["gspo", "gspo_token", "grpo", "dapo", "dr_grpo", "cispo", "sapo", "visurf"]
DemoBase = Literal["tiny_qwen2_5_vl", "tiny_qwen3_vl", "tiny_qwen3_vl_moe"]
ALGORITHM_TITLES: dict[DemoAlgorithm, str] = {
    "gspo": "GSPO",
    "gspo_token": "GSPO-token",
    "grpo": "GRPO",
    "dapo": "DAPO",
    "dr_grpo": "Dr. GRPO",
    "cispo": "CISPO",
    "sapo": "SAPO",
    "visurf": "ViSurf",
}
"""How texts call the algorithms that the demo runs with."""


def name_rl_stage(algorithm: DemoAlgorithm) -> str:
    """Returns the folder of an algorithm's RL run in a demo: rl is GSPO's, rl_dapo is DAPO's."""
    return "rl" if algorithm == "gspo" else f"rl_{algorithm}"


RL_STAGES = {name_rl_stage(algorithm): title for algorithm, title in ALGORITHM_TITLES.items()}
"""The RL stages that a demo's folder may hold, and what texts call their algorithms."""


@dataclass(frozen=True, kw_only=True)
class DigitsConfig:
    """Questions about images of real handwritten digits; scans are split before any image is composed."""

    out: str
    """Folder that gets train/, validation/ and test/, each with index.json and .tar shards."""
    train: int = 16_384
    """Training samples."""
    validation: int = 256
    """Validation samples."""
    test: int = 512
    """Test samples, held out."""
    seed: int = 42
    """Seeds layouts and questions; which scans a split holds never changes."""
    video: bool = False
    """Ask about clips in which digits appear one after the other, instead of images."""
    text: bool = False
    """Ask about digits that stand in the question, without an image."""

    def __post_init__(self) -> None:
        if self.video and self.text:
            raise ValueError("video=True and text=True exclude each other; write two folders, and mix them")
        for name, count in self.counts.items():
            if count < 1:
                raise ValueError(f"{name}={count} must be at least 1")

    @property
    def counts(self) -> dict[Literal["train", "validation", "test"], int]:
        """Returns the number of samples by split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole recipe at the size of a laptop: data, SFT, RL, evaluation before and after, report."""

    out: str = "runs/demo"
    """Folder of everything the demo makes; the same folder resumes."""
    seed: int = 42
    """Seeds data, model, training and evaluation."""
    train: int | None = None
    """Training questions; by default those of `omr data digits`."""
    test: int | None = None
    """Held-out questions; by default those of `omr data digits`."""
    sft_steps: int | None = None
    """Steps of SFT; by default those of the recipe. A few steps show that everything runs, and learn nothing."""
    rl_steps: int | None = None
    """Steps of RL; by default those of the recipe."""
    base: DemoBase = "tiny_qwen2_5_vl"
    """The untrained model, by family."""
    video: bool = False
    """Questions about short clips of digits that appear one after the other, instead of images."""
    algorithm: DemoAlgorithm = "gspo"
    """Algorithm of RL. A folder in which others have run keeps their results; data, model and SFT are shared."""
