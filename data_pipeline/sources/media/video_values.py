"""Reads a video of a row: the chosen frames of a video file, or those of a folder or a list of images.

Frames that are images already stay as they are. Which frames are kept is decided here, once, so that trainer and
engine get the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.encode.image_header import image_format
from data_pipeline.encode.video_times import MAX_FPS, MIN_FPS, Timeline, check_video
from data_pipeline.errors import BadSample, column_error, describe
from data_pipeline.sources.config import FramesConfig
from data_pipeline.sources.media.named_files import find_file, read_data_url
from data_pipeline.sources.media.video_decoder import NO_SOUND, decode_video
from data_pipeline.types import Video

ReadImage = Callable[[object, Path | None], bytes]
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")
SOUND = (".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus", ".aac")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FRAMES = "give the frames of a video as {frames: [...], fps: RATE}"
_FORMS = "a video file (path, bytes or data URL), {frames, fps} or {frames, timestamps}"


def read_video(value: object, folder: Path | None, config: FramesConfig, read_image: ReadImage) -> Video:
    """Returns the video of a path, a data URL, bytes, {bytes, path}, {frames, fps} or {frames, timestamps}.

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
        folder = find_file(frames, folder, "video")
        frames = _list_images(folder)
    if not isinstance(frames, Sequence) or not len(frames):
        raise column_error("videos.frames", "a folder or a list of images", frames, "give its frames")
    timeline = _read_timeline(value, len(frames))
    chosen = timeline.choose(config.fps, config.max_frames)
    return Video(
        frames=tuple(read(frames[i], folder) for i in chosen),
        indices=tuple(timeline.indices[i] for i in chosen),
        fps=timeline.fps,
        num_source_frames=timeline.total,
    )


def _list_images(folder: Path) -> list[str]:
    """Returns the images of a folder by the numbers in their names."""
    try:
        names = [path.name for path in folder.iterdir() if path.suffix.lower() in _IMAGES]
    except OSError as error:  # a file, or a folder that may not be read
        detail = f"frames: {folder}: {error.strerror}; give a folder of images, or a video file as a path"
        raise BadSample("video", detail) from error
    return sorted(names, key=_by_number)


def _read_timeline(value: Mapping[str, Any], count: int) -> Timeline:
    """Returns the times that a row gives for its frames."""
    stamps, fps = value.get("timestamps"), value.get("fps")
    if stamps is None and isinstance(fps, (int, float)) and MIN_FPS <= fps <= MAX_FPS:
        return Timeline.even(count, float(fps))
    if stamps is None:
        wanted = f"a rate from {MIN_FPS:g} to {MAX_FPS:g}, or timestamps"
        raise column_error("videos.fps", wanted, fps, "give one of both")
    if not isinstance(stamps, (list, tuple)) or len(stamps) != count:
        wanted = f"a second for each of the {count} frames"
        raise column_error("videos.timestamps", wanted, stamps, "give them, or fps")
    if not all(isinstance(second, (int, float)) and abs(second) < 1e12 for second in stamps) or any(
        b <= a for a, b in zip(stamps, stamps[1:], strict=False)
    ):
        raise BadSample("video", f"timestamps must be ascending seconds, saw {describe(stamps)}")
    return Timeline.uneven(stamps)


def _from_file(value: object, folder: Path | None, config: FramesConfig) -> Video:
    if isinstance(value, str) and value.startswith("data:"):
        value = read_data_url(value, "video")
    if isinstance(value, (bytes, bytearray)):
        if image_format(bytes(value[:16])):
            raise column_error("videos", _FORMS, "an image", _FRAMES)
        return decode_video(bytes(value), f"the video of {len(value)} bytes", config)
    if not isinstance(value, str) or value.lower().endswith(_IMAGES):
        raise column_error("videos", _FORMS, value, _FRAMES)
    if value.lower().endswith(SOUND):
        raise BadSample("audio", f"{value[:200]}: {NO_SOUND}")
    path = find_file(value, folder, "video")
    if path.is_dir():
        raise column_error(
            "videos", "{frames: FOLDER, fps: RATE} for a folder", value, "give the frames' rate"
        )
    return decode_video(path, str(path), config)


def _by_number(name: str) -> tuple[list[int], str]:
    """Sorts 2.jpg before 10.jpg."""
    return [int(number) for number in re.findall(r"\d+", name)], name
