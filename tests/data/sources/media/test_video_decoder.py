"""Decoding video files: of every container the frames at their times, and nothing of a file that is torn or harmful."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from data_pipeline.errors import BadSample
from data_pipeline.sources.config import FramesConfig
from data_pipeline.sources.media.video_decoder import decode_video
from data_pipeline.types import Video
from tests.helpers.clips import GREYS, greys, write_clip

ALL = FramesConfig(fps=25.0)
CLIPS: dict[str, dict[str, str | int]] = {
    "a.mp4": {"codec": "libx264"},
    "fast.mp4": {"codec": "libx264", "movflags": "faststart"},
    "a.mov": {},
    "a.mkv": {"codec": "libx264"},
    "a.webm": {"codec": "libvpx"},
    "a.avi": {},
    "a.flv": {"codec": "flv"},
    "a.ts": {"codec": "libx264"},
    "a.mpg": {"codec": "mpeg2video", "fps": 25},
    "a.wmv": {"codec": "wmv2", "fps": 25},
}


def decode(source: Path | bytes, config: FramesConfig = ALL) -> Video:
    return decode_video(source, "clip", config)


@pytest.mark.parametrize("name", CLIPS)
def test_every_container_shows_each_frame_at_its_time(tmp_path: Path, name: str):
    clip: dict = CLIPS[name]
    video = decode(write_clip(tmp_path / name, frames=12, **clip))
    assert greys(video) == [number % len(GREYS) for number in range(12)]
    assert video.seconds == pytest.approx([number / clip.get("fps", 10) for number in range(12)], abs=1e-3)


@pytest.mark.parametrize("name", ["fast.mp4", "a.mov", "a.mkv", "a.webm", "a.avi", "a.flv"])
def test_a_file_that_ends_early_is_refused_though_its_frames_could_be_read(tmp_path: Path, name: str):
    clip: dict = CLIPS[name]
    whole = write_clip(tmp_path / name, frames=60, **clip).read_bytes()
    with pytest.raises(BadSample, match=r"torn|cannot be decoded") as caught:
        decode(whole[: len(whole) * 7 // 10], FramesConfig(max_frames=2))
    assert caught.value.reason == "video"


def test_frames_that_are_shown_for_long_are_no_tear(tmp_path: Path):
    slides = write_clip(tmp_path / "a.mkv", times=[0, 50, 100, 160, 220, 290])
    assert greys(decode(slides)) == [0, 1, 2, 3, 4, 5]


def test_frames_that_an_edit_list_cuts_off_are_not_taken(tmp_path: Path):
    """Frames before 0 seconds are in the file, so that later ones can be decoded, but are not shown."""
    cut = write_clip(
        tmp_path / "a.mp4",
        codec="libx264",
        frames=22,
        times=range(-10, 12),
        key_frames=60,
        avoid_negative_ts="disabled",
    )
    with av.open(str(cut)) as container:
        assert any(packet.is_discard for packet in container.demux())
    video = decode(cut, FramesConfig(fps=5.0))
    assert video.indices == (0, 2, 4, 6, 8, 10) and video.num_source_frames == 12
    assert greys(video) == [(10 + number) % len(GREYS) for number in video.indices]


def test_a_time_at_which_nothing_can_be_decoded_is_refused(tmp_path: Path):
    """The second group of frames lacks its key frame."""
    whole = write_clip(tmp_path / "whole.mkv", codec="libx264", frames=24, key_frames=8)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number != 0:
                packet.stream = stream
                out.mux(packet)
    with pytest.raises(BadSample, match=r"frame at 0\.\d+ seconds is damaged or missing"):
        decode(tmp_path / "a.mkv")


def test_frames_come_upright(tmp_path: Path):
    data = write_clip(tmp_path / "a.mp4").read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # as telephones write
    place = data.rfind(upright)  # of the track, behind that of the whole file
    video = decode(data[:place] + turned + data[place + len(turned) :])
    assert Image.open(io.BytesIO(video.frames[0])).size == (48, 64)


def test_large_frames_are_scaled_before_they_are_written(tmp_path: Path):
    video = decode(write_clip(tmp_path / "a.mp4", size=(320, 240)), FramesConfig(max_pixels=28 * 28 * 20))
    assert Image.open(io.BytesIO(video.frames[0])).size == (140, 84)
    assert greys(video) == [0, 1, 2, 3, 4, 5][:: len(GREYS) // len(video.frames)]


def test_pictures_that_are_too_large_are_not_decoded():
    side, file = 9_460, io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("rawvideo", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "gray"
        frame = av.VideoFrame(side, side, "gray")
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(BadSample, match="or its frames have more than 89478485 pixels"):
        decode(file.getvalue())


def test_no_file_opens_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "secret.ts", codec="libx264")
    texts = {
        "concat": "ffconcat version 1.0\nfile secret.ts\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.6,\nfile://{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.mp4").write_text(text)
        for source in (tmp_path / f"{name}.mp4", text.encode()):
            with pytest.raises(BadSample, match="cannot be decoded"):
                decode(source)
