"""Video files of plain grey frames, and what is seen in them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from data_pipeline.types import Video

GREYS = [20, 60, 100, 140, 180, 220]


def write_clip(
    path: Path,
    *,
    codec: str = "mpeg4",
    fps: int = 10,
    frames: int = 6,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (64, 48),
    key_frames: int = 12,
    **options: str,
) -> Path:
    """Writes a file whose frames are plain greys of their own.

    Args:
        times: of the frames, in 1 / fps seconds.
        key_frames: frames from one key frame to the next.
        options: of the container.
    """
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = key_frames
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), GREYS[number % len(GREYS)], np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[number] if times else number
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8_000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def greys(video: Video) -> list[int]:
    """Returns the number of the grey of each frame."""
    means = [np.asarray(Image.open(io.BytesIO(frame)).convert("L")).mean() for frame in video.frames]
    return [min(range(len(GREYS)), key=lambda i: abs(GREYS[i] - mean)) for mean in means]
