"""The times of a video's frames: which are chosen, and what a model is told of them (pure; no pixel is decoded).

A model takes frames in pairs; of an odd number the last is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.errors import BadSample
from data_pipeline.types import Video

PAIR = 2
"""Frames that become one time of a model."""
MIN_FPS, MAX_FPS = 1e-4, 1e4
"""Rates of a video: from a frame in three hours to high-speed cameras."""
MAX_SOURCE_FRAMES = 1 << 31
"""Most frames of a video, also where they are milliseconds: 24 days."""
_MILLISECONDS = 1_000.0
"""The rate that is written where frames come at uneven times."""


def check_video(video: Video) -> None:
    """Raises BadSample where the numbers of a video do not fit each other."""
    if not video.frames or len(video.indices) != len(video.frames):
        raise BadSample(
            "video", f"{len(video.frames)} frames with {len(video.indices)} numbers; write it again"
        )
    _check_rate(video.fps, video.num_source_frames)
    ascending = all(a < b for a, b in zip((-1, *video.indices), video.indices, strict=False))
    if not ascending or video.indices[-1] >= video.num_source_frames:
        raise BadSample(
            "video",
            f"the numbers of its frames, {list(video.indices[:5])}, ..., {video.indices[-1]}, must ascend from 0 and "
            f"be below num_source_frames={video.num_source_frames}",
        )


def _check_rate(fps: float, num_frames: int) -> None:
    if not MIN_FPS <= fps <= MAX_FPS:
        raise BadSample(
            "video", f"{fps} frames a second, outside of {MIN_FPS:g} to {MAX_FPS:g}; write the source's rate"
        )
    if num_frames > MAX_SOURCE_FRAMES:
        raise BadSample(
            "video", f"more than {MAX_SOURCE_FRAMES} frames; are its times seconds? cut the video"
        )


@dataclass(frozen=True)
class Timeline:
    """The times of all frames of a source, as numbers at a rate; raises BadSample where no video has them."""

    indices: Sequence[int]  # ascending from 0
    fps: float
    total: int  # frames at that rate

    def __post_init__(self) -> None:
        _check_rate(self.fps, self.total)

    @classmethod
    def even(cls, num_frames: int, fps: float) -> Timeline:
        return cls(range(num_frames), fps, num_frames)

    @classmethod
    def uneven(cls, seconds: Sequence[float]) -> Timeline:
        """Returns ascending times as numbers of milliseconds from the first."""
        indices = [round((second - seconds[0]) * _MILLISECONDS) for second in seconds]
        gap = indices[-1] / (len(indices) - 1) if len(indices) > 1 else _MILLISECONDS
        return cls(indices, _MILLISECONDS, indices[-1] + max(1, round(gap)))

    @classmethod
    def of_times(cls, seconds: Sequence[float]) -> Timeline:
        """Returns numbers of frames where ascending times are even, else milliseconds."""
        length = seconds[-1] - seconds[0]
        if length <= 0:
            return cls([0], 1.0, 1)
        fps = (len(seconds) - 1) / length
        if all(abs((second - seconds[0]) * fps - number) < 0.5 for number, second in enumerate(seconds)):
            return cls.even(len(seconds), float(f"{fps:.6g}"))
        return cls.uneven(seconds)

    def choose(self, fps: float, max_frames: int) -> list[int]:
        """Returns the places of the frames to keep: of each time that is wanted the nearest one, once."""
        wanted = choose_frames(self.total, self.fps, fps=fps, max_frames=min(max_frames, len(self.indices)))
        nearest = (
            min(range(len(self.indices)), key=lambda i: abs(self.indices[i] - number)) for number in wanted
        )
        return list(dict.fromkeys(nearest))


def count_pairs(num_frames: int) -> int:
    """Returns the pairs that a video's frames make; the last of an odd number is a pair with itself."""
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
    wanted = round(min(num_frames / source_fps * fps, max_frames, num_frames))
    return [number * num_frames // max(1, wanted) for number in range(max(1, wanted))]
