"""The times of a video's frames: which are chosen, and what a model is told of them (pure; no pixel is decoded).

A model takes frames in pairs; of an odd number the last is repeated.
"""

from __future__ import annotations

import math

from data_pipeline.errors import BadSample
from data_pipeline.types import Video

PAIR = 2
"""Frames that become one time of a model."""


def check_video(video: Video) -> None:
    """Raises BadSample where the numbers of a video do not fit each other."""
    if not video.frames or len(video.indices) != len(video.frames):
        raise BadSample(
            "video", f"{len(video.frames)} frames with {len(video.indices)} numbers; write it again"
        )
    if not 0 < video.fps < math.inf:
        raise BadSample("video", f"{video.fps} frames a second; write the rate of the source")
    ascending = all(a < b for a, b in zip((-1, *video.indices), video.indices, strict=False))
    if not ascending or video.indices[-1] >= video.num_source_frames:
        raise BadSample(
            "video",
            f"the numbers of its frames, {list(video.indices[:5])}, ..., {video.indices[-1]}, must ascend from 0 and "
            f"be below num_source_frames={video.num_source_frames}",
        )


def count_pairs(num_frames: int) -> int:
    return -(-num_frames // PAIR)


def seconds_per_pair(video: Video) -> float:
    """Returns the mean time between two pairs, as transformers and vLLM compute it from metadata."""
    return PAIR / (len(video.indices) / video.num_source_frames * video.fps)


def pair_seconds(video: Video) -> list[float]:
    """Returns the time of each pair: the mean of its frames'."""
    seconds = [*video.seconds, video.seconds[-1]]  # repeats the last of an odd number
    return [(a + b) / PAIR for a, b in zip(seconds[:-1:PAIR], seconds[1::PAIR], strict=True)]


def choose_frames(num_frames: int, source_fps: float, *, fps: float, max_frames: int) -> list[int]:
    """Returns the numbers of frames to keep of a video: about `fps` a second, evenly spread, at most `max_frames`.

    The first frame is always among them. A video of fewer frames a second keeps them all.
    """
    wanted = min(max(1, round(num_frames / source_fps * fps)), max_frames, num_frames)
    return [number * num_frames // wanted for number in range(wanted)]
