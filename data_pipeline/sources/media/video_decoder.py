"""Decodes the frames that are kept of a video file (PyAV), as JPEG, upright; its sound is not read.

A file of a corpus is not trusted: FFmpeg may open no other file and no address, knows containers only (no playlists),
and decodes no picture larger than an image may be. What ends before it says, or shows no frame at a time that is
wanted, is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline.encode.config import ImageConfig
from data_pipeline.encode.video_times import Timeline
from data_pipeline.errors import BadSample
from data_pipeline.sources.config import FramesConfig
from data_pipeline.types import Video

NO_SOUND = "sound is not supported: no model here hears it; drop the row, or ask about the pictures alone"
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf"
_MAX_LATE = 0.25
"""Most seconds that a frame may come after the time that is wanted."""
_MAX_MISSING = 1.0
"""Most seconds that a file may end before it says."""
_QUALITY = 92


def decode_video(source: Path | bytes, name: str, config: FramesConfig) -> Video:
    """Returns the frames of a file that are nearest to the config's rate.

    Raises:
        BadSample: `video` where it cannot be decoded, is torn, or has no pictures; `audio` for sound alone.
        ValueError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"{name} is a video file, which needs PyAV: pip install av; or give folders of frames"
        ) from error
    try:
        with _open(av, source) as container:
            times = _read_times(container, _find_stream(av, container))
        timeline = Timeline.of_times(times)
        chosen = timeline.choose(config.fps, config.max_frames)
        with _open(av, source) as container:
            stream = _find_stream(av, container)
            shown = _frames_at(container, stream, [times[place] for place in chosen])
            frames = tuple(_encode(frame, config) for frame in shown)
    except BadSample as error:
        raise BadSample(error.reason, f"{name}: {error.args[1]}") from error
    except (av.error.FFmpegError, OSError, ValueError, ArithmeticError, LookupError) as error:
        detail = f"{name} cannot be decoded, or its frames have more than {_max_pixels()} pixels: {error}"
        raise BadSample("video", f"{detail}; convert it, to mp4 for example, or drop it") from error
    return Video(
        frames=frames,
        indices=tuple(timeline.indices[place] for place in chosen),
        fps=timeline.fps,
        num_source_frames=timeline.total,
    )


def _open(av: Any, source: Path | bytes) -> Any:
    return av.open(
        io.BytesIO(source) if isinstance(source, bytes) else str(source),
        options={
            "format_whitelist": _CONTAINERS,
            "protocol_whitelist": "file",
            "max_pixels": str(
                _max_pixels()
            ),  # also while FFmpeg looks for the streams, and where sizes change
        },
        metadata_errors="replace",
    )


def _max_pixels() -> int:
    from data_pipeline.encode.images import MAX_SOURCE_PIXELS  # imports torch

    return MAX_SOURCE_PIXELS


def _find_stream(av: Any, container: Any) -> Any:
    """Returns the first stream of moving pictures, which the cover of a song is not."""
    cover = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None:
        raise (
            BadSample("audio", NO_SOUND)
            if container.streams.audio
            else BadSample("video", "it has no pictures")
        )
    stream.codec_context.options = {"max_pixels": str(_max_pixels())}
    return stream


def _read_times(container: Any, stream: Any) -> list[float]:
    """Returns the ascending times of the frames that are shown: those that an edit list cuts off are not.

    Reads all streams, to see whether the file ends where it says. MPEG streams say nothing: torn, they are shorter.
    """
    times, last, is_broken = list[float](), 0.0, False
    for packet in container.demux():
        if packet.pts is None or packet.time_base is None or packet.is_discard:
            continue
        second = float(packet.pts * packet.time_base)
        last = max(last, second + float((packet.duration or 0) * packet.time_base))
        if packet.stream.index == stream.index:
            times.append(second)
            is_broken = packet.is_corrupt
    if not times:
        raise BadSample("video", "it holds no frame with a time")
    times.sort()
    says = (container.duration or 0) / 1e6
    if is_broken or says > last - min(0.0, times[0]) + _MAX_MISSING:
        raise BadSample("video", f"it ends after {last:.1f} of {says:.1f} seconds; it is torn: copy it again")
    return times


def _frames_at(container: Any, stream: Any, times: Sequence[float]) -> Iterator[Image.Image]:
    """Yields the frame of each of these times, upright.

    Raises:
        BadSample: a frame is damaged, or none is shown near its time.
    """
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    late = min(_MAX_LATE, *(gap / 2 for gap in gaps)) if gaps else _MAX_LATE
    left = list(times[::-1])
    for frame in container.decode(stream):
        if not left:
            return
        if frame.time is None or frame.time < left[-1] - 1e-4:
            continue
        if frame.is_corrupt or frame.time > left[-1] + late:
            break
        left.pop()
        yield frame.to_image().rotate(frame.rotation, expand=True)
    if left:
        raise BadSample(
            "video", f"its frame at {left[-1]:.2f} seconds is damaged or missing; convert or drop it"
        )


def _encode(image: Image.Image, config: FramesConfig) -> bytes:
    from data_pipeline.encode.images import final_size  # imports torch

    if image.width * image.height > config.max_pixels:
        try:
            size = final_size(image.width, image.height, ImageConfig(max_pixels=config.max_pixels))
        except BadSample as error:
            raise BadSample("video", f"its frames: {error.args[1]}") from error
        image = image.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
