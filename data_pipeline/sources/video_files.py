"""Reads a video of a row: chooses frames of a video file (PyAV), or takes those of a folder or a list of images.

The frames of a file are decoded and kept as JPEG; its sound is not read. Frames that are images already stay as they
are. Which frames are kept is decided here, once, so that trainer and engine get the same ones.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.video_times import check_video, choose_frames
from data_pipeline.errors import BadSample, column_error, describe
from data_pipeline.sources.config import FramesConfig
from data_pipeline.types import Video

ReadImage = Callable[[object, Path | None], bytes]
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")
SOUND = (".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus", ".aac")
NO_SOUND = "sound is not supported: no model here hears it; drop the row, or ask about the pictures alone"
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MILLISECONDS = 1_000.0  # the rate that is written where frames come at uneven times
_QUALITY = 92


def read_video(value: object, folder: Path | None, config: FramesConfig, read_image: ReadImage) -> Video:
    """Returns the video of a path, bytes, {bytes, path}, {frames, fps} or {frames, timestamps}.

    `frames` is a folder of images, or a list of them; `fps` is their rate, `timestamps` the second of each. Of more
    frames than the config wants those are taken that are nearest to its rate.

    Raises:
        BadSample: `video` where it cannot be read, has no frames, or its times do not fit; `audio` for sound alone.
        ValueError: the file needs PyAV, which is not installed.
    """
    if isinstance(value, Mapping) and value.get("frames"):
        video = _from_frames(value, folder, config, read_image)
    else:
        if isinstance(value, Mapping):
            value = next((value[name] for name in ("bytes", "path", "video", "url") if value.get(name)), None)
        video = _from_file(value, folder, config)
    check_video(video)
    return video


def _from_frames(
    value: Mapping[str, Any], folder: Path | None, config: FramesConfig, read: ReadImage
) -> Video:
    frames = value["frames"]
    if isinstance(frames, str):
        place = _find(frames, folder)
        frames = sorted(
            (path.name for path in place.iterdir() if path.suffix.lower() in _IMAGES), key=_by_number
        )
        folder = place
    if not isinstance(frames, Sequence) or not len(frames):
        raise column_error("videos.frames", "a folder or a list of images", frames, "give its frames")
    indices, fps, total = _times(value, len(frames))
    chosen = _choose(indices, fps, total, config)
    return Video(
        frames=tuple(read(frames[i], folder) for i in chosen),
        indices=tuple(indices[i] for i in chosen),
        fps=fps,
        num_source_frames=total,
    )


def _times(value: Mapping[str, Any], count: int) -> tuple[list[int], float, int]:
    """Returns the numbers of the frames, their rate, and the number of frames at that rate."""
    stamps, fps = value.get("timestamps"), value.get("fps")
    if stamps is None and isinstance(fps, (int, float)) and fps > 0:
        return list(range(count)), float(fps), count
    if stamps is None or len(stamps) != count:
        wanted = f"fps above 0, or a second for each of the {count} frames in timestamps"
        raise column_error("videos", wanted, dict(value), "give one of both")
    ascending = all(isinstance(second, (int, float)) for second in stamps)
    if not ascending or any(b <= a for a, b in zip(stamps, stamps[1:], strict=False)):
        raise BadSample("video", f"timestamps must be ascending seconds, saw {describe(stamps)}")
    return _uneven(stamps)


def _uneven(seconds: Sequence[float]) -> tuple[list[int], float, int]:
    """Returns times as numbers of milliseconds from the first."""
    indices = [round((second - seconds[0]) * _MILLISECONDS) for second in seconds]
    gap = indices[-1] / (len(indices) - 1) if len(indices) > 1 else _MILLISECONDS
    return indices, _MILLISECONDS, indices[-1] + max(1, round(gap))


def _choose(indices: Sequence[int], fps: float, total: int, config: FramesConfig) -> list[int]:
    """Returns the places of the frames to keep: of each time that is wanted the nearest one, once."""
    wanted = choose_frames(total, fps, fps=config.fps, max_frames=min(config.max_frames, len(indices)))
    nearest = (min(range(len(indices)), key=lambda i: abs(indices[i] - time)) for time in wanted)
    return list(dict.fromkeys(nearest))


def _from_file(value: object, folder: Path | None, config: FramesConfig) -> Video:
    if isinstance(value, (bytes, bytearray)):
        return _decode(bytes(value), f"the video of {len(value)} bytes", config)
    if not isinstance(value, str):
        raise column_error(
            "videos", "a path, bytes, {frames, fps} or {frames, timestamps}", value, "convert it"
        )
    if value.lower().endswith(SOUND):
        raise BadSample("audio", f"{value}: {NO_SOUND}")
    place = _find(value, folder)
    if place.is_dir():
        raise column_error(
            "videos", "{frames: FOLDER, fps: RATE} for a folder", value, "give the frames' rate"
        )
    return _decode(place, str(place), config)


def _find(name: str, folder: Path | None) -> Path:
    """Returns the path of a file or folder inside the folder of images."""
    name = name.removeprefix("file://")
    if "://" in name:
        raise BadSample(
            "video", f"{name[:200]} is an address, which is not fetched; download it, give its path"
        )
    if folder is None:
        raise BadSample("video", f"{name!r} is a path; set rows.images to the folder that it is relative to")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadSample("video", f"{name!r} leads out of {folder}; put the file into that folder")
    if not path.exists():
        raise BadSample("video", f"{path} does not exist; is rows.images the right folder?")
    return path


def _by_number(name: str) -> tuple[list[int], str]:
    """Sorts 2.jpg before 10.jpg."""
    return [int(number) for number in re.findall(r"\d+", name)], name


@dataclass(frozen=True)
class _Timeline:
    """The times of all frames of a file, as Video writes them."""

    indices: list[int]
    fps: float
    total: int


def _decode(source: Path | bytes, path: str, config: FramesConfig) -> Video:
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"{path} is a video file, which needs PyAV: pip install av; or give folders of frames"
        ) from error
    try:
        with _open(av, source) as container:
            if not container.streams.video:
                has_sound = bool(container.streams.audio)
                detail = NO_SOUND if has_sound else "it holds no pictures"
                raise BadSample("audio" if has_sound else "video", f"{path}: {detail}")
            times = sorted(
                float(packet.pts * packet.time_base)
                for packet in container.demux(video=0)
                if packet.pts is not None and packet.time_base is not None
            )
        if not times:
            raise BadSample("video", f"{path}: it holds no frame with a time")
        timeline = _read_timeline(times)
        chosen = _choose(timeline.indices, timeline.fps, timeline.total, config)
        frames = [_encode(image, config) for image in _frames_at(av, source, [times[i] for i in chosen])]
    except av.error.FFmpegError as error:
        raise BadSample("video", f"{path} cannot be decoded: {error}; convert or drop it") from error
    if len(frames) < len(chosen):
        raise BadSample(
            "video", f"{path} ends after {len(frames)} of the {len(chosen)} frames to keep; it is torn"
        )
    return Video(
        frames=tuple(frames),
        indices=tuple(timeline.indices[i] for i in chosen),
        fps=timeline.fps,
        num_source_frames=timeline.total,
    )


def _read_timeline(times: Sequence[float]) -> _Timeline:
    """Returns frame numbers where frames come evenly, else milliseconds."""
    length = times[-1] - times[0]
    if length <= 0:
        return _Timeline([0], 1.0, 1)
    fps = (len(times) - 1) / length
    if all(abs((time - times[0]) * fps - number) < 0.5 for number, time in enumerate(times)):
        return _Timeline(list(range(len(times))), round(fps, 3), len(times))
    return _Timeline(*_uneven(times))


def _open(av: Any, source: Path | bytes) -> Any:
    return av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))


def _frames_at(av: Any, source: Path | bytes, times: Sequence[float]) -> Iterator[Image.Image]:
    """Yields the decoded frames of these times, upright; ends with the file."""
    wanted = iter(times)
    following = next(wanted, None)
    with _open(av, source) as container:
        for frame in container.decode(video=0):
            if following is None:
                return
            if frame.time is not None and frame.time >= following - 1e-4:
                yield frame.to_image().rotate(frame.rotation, expand=True)
                following = next(wanted, None)


def _encode(image: Image.Image, config: FramesConfig) -> bytes:
    from data_pipeline.encode.images import scale_down  # imports torch

    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=_QUALITY)
    if image.width * image.height <= config.max_pixels:
        return file.getvalue()
    return scale_down(file.getvalue(), max(config.max_pixels, ImageConfig.min_pixels))
