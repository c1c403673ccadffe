"""Config of how images and videos become patches (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from data_pipeline.config import check_at_least

LossOn = Literal["all", "last"]
"""The turns of the assistant that are learned."""


@dataclass(frozen=True, kw_only=True)
class PatchFormat:
    """How the image processor of a family of models cuts images into patches."""

    side: int  # pixels of a patch's side
    mean: tuple[float, float, float]  # of red, green and blue between 0 and 1
    std: tuple[float, float, float]
    merge: int = 2  # patches of a token's side
    frames: int = 2  # of a patch; an image is repeated
    timestamps: bool = False  # the text says the times of a video's frames; else its tokens' positions do

    @property
    def token_side(self) -> int:
        """Pixels of a token's side."""
        return self.side * self.merge

    @property
    def num_bytes(self) -> int:
        """Bytes of a patch of an image; normalise() makes eight times as many of it."""
        return 3 * self.side**2


QWEN2_5_VL_PATCHES = PatchFormat(
    side=14, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
QWEN3_VL_PATCHES = PatchFormat(side=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), timestamps=True)
PATCH_FORMATS = (QWEN2_5_VL_PATCHES, QWEN3_VL_PATCHES)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Limits of the sizes of images and videos; trainer and engine share them, so that they count the same tokens."""

    min_pixels: int = 3_136
    """Smaller images are scaled up to this area."""
    max_pixels: int = 4_194_304
    """Larger images are scaled down to this area (2048 x 2048, the published intent)."""
    max_frames: int = 256
    """Most frames of a video; samples with longer ones are refused, `omr data import` chooses fewer."""
    frame_pixels: int = 602_112
    """Larger frames of a video are scaled down to this area: 768 tokens for two of them."""
    video_pixels: int = 38_535_168
    """And to this area of all frames of a video together: 24,576 tokens."""

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"image.min_pixels={self.min_pixels} must be positive and at most "
                f"image.max_pixels={self.max_pixels}; set e.g. 3136 and 4194304"
            )
        check_at_least(self, "image.", max_frames=1, frame_pixels=784, video_pixels=784)

    def of_frames(self, num_frames: int) -> ImageConfig:
        """Returns the limits of each frame of a video of so many. Small frames keep their size."""
        most = max(1, min(self.frame_pixels, self.video_pixels // max(1, num_frames)))
        return replace(self, min_pixels=1, max_pixels=most)


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """A model, and the limits of what it is trained on or asked."""

    model: str = ""
    """Hugging Face folder of a model: find also what it refuses."""
    max_tokens: int = 61_440
    """Most tokens that the model is given: loader.pack_length of SFT; engine.max_model_len - 1 of RL and evaluation."""
    max_images: int | None = None
    """Most images that the model is given: engine.max_images of RL and evaluation; SFT takes any number."""
    max_videos: int | None = None
    """Most videos that the model is given: engine.max_videos of RL and evaluation; SFT takes any number."""
    image: ImageConfig = field(default_factory=ImageConfig)
