"""Configs of the conversion between Hugging Face folders and checkpoints (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_omr.config import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class ToMegatronConfig:
    """A Hugging Face folder to a distributed checkpoint."""

    source: str
    """Hugging Face folder with safetensors."""
    out: str
    """Folder to write."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The layout that is to load it fastest. Any other loads it, too."""


@dataclass(frozen=True, kw_only=True)
class ToHfConfig:
    """A distributed checkpoint to a Hugging Face folder."""

    source: str
    """Checkpoint folder, such as RUN/checkpoints/step-00000100; of any layout."""
    out: str
    """Folder to write."""
    template: str = ""
    """Hugging Face folder with the model's config, tokenizer and processor; by default SOURCE/hf."""
