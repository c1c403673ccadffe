"""Samples with short videos."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data_pipeline.types import IMAGE_MARK, VIDEO_MARK, Message, Sample, Video


def make_video(
    num_frames: int, *, size: tuple[int, int] = (56, 84), fps: float = 4.0, every: int = 2, seed: int = 0
) -> Video:
    """Returns a video of noise, of which every `every`-th frame is kept; `size` is width and height."""
    rng = np.random.default_rng(seed)
    frames = [draw_png(size, rng) for _ in range(num_frames)]
    return Video(
        frames=tuple(frames),
        indices=tuple(range(0, num_frames * every, every)),
        fps=fps,
        num_source_frames=num_frames * every,
    )


def draw_png(size: tuple[int, int], rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def ask_about(videos: list[Video], images: list[bytes] | None = None, *, name: str = "clip") -> Sample:
    """Returns a question about an image, videos, and the other images, in this order."""
    images = images or []
    text = (
        IMAGE_MARK * bool(images) + "What " + VIDEO_MARK * len(videos) + IMAGE_MARK * max(0, len(images) - 1)
    )
    return Sample(
        id=name,
        source="clips",
        messages=(
            Message(role="user", content=f"{text} is 3 plus 4?"),
            Message(role="assistant", content="<think>3+4=7</think><answer>7</answer>"),
        ),
        images=tuple(images),
        videos=tuple(videos),
        answer="7",
    )
