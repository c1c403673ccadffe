"""Config of how images become patches (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

LossOn = Literal["all", "last"]
"""The turns of the assistant that are learned."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Limits of image sizes; trainer and engine share them, so that they count the same tokens."""

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
class LimitsConfig:
    """A model, and the limits of what it is trained on or asked."""

    model: str = ""
    """Hugging Face folder of a model: find also what it refuses."""
    max_tokens: int = 61_440
    """Most tokens that the model is given: loader.pack_length of SFT; engine.max_model_len - 1 of RL and evaluation."""
    max_images: int | None = None
    """Most images that the model is given: engine.max_images of RL and evaluation; SFT takes any number."""
    image: ImageConfig = field(default_factory=ImageConfig)
