"""Videos of rows: files that PyAV decodes, folders and lists of frames, and what is refused by name."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import BadSample
from data_pipeline.files import to_json
from data_pipeline.shards.format import read_shards
from data_pipeline.sources.adapters import CORPORA
from data_pipeline.sources.config import FramesConfig, ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import import_corpus, read_corpus
from data_pipeline.sources.rows import Row
from data_pipeline.types import Sample
from tests.helpers.clips import greys, write_clip, write_sound
from tests.helpers.videos import draw_png

USUAL = FramesConfig()


def read(folder: Path, frames: FramesConfig = USUAL, **fields: object) -> Sample:
    row = {"question": "What happens?", "answer": "7", **fields}
    return CORPORA["questions"].read(
        Row(fields=row, corpus="questions", number=0, images=folder, frames=frames)
    )


def test_frames_of_a_file_are_chosen_by_the_rate(tmp_path: Path):
    write_clip(tmp_path / "clip.mp4")
    sample = read(tmp_path, FramesConfig(fps=5.0), videos=["clip.mp4"])
    (video,) = sample.videos
    assert video.indices == (0, 2, 4) and (video.fps, video.num_source_frames) == (10.0, 6)
    assert greys(video) == [0, 2, 4]
    assert sample.messages[-1].content == "<video>What happens?"
    (few,) = read(tmp_path, FramesConfig(fps=10.0, max_frames=2), video="clip.mp4").videos
    assert few.indices == (0, 3) and greys(few) == [0, 3]
    assert read(tmp_path, FramesConfig(fps=10.0), video="clip.mp4").id != sample.id


def test_bytes_and_members_of_tars_are_files_too(tmp_path: Path):
    data = write_clip(tmp_path / "clip.mp4").read_bytes()
    of_path, of_bytes, of_row = (
        read(tmp_path, videos=[value]) for value in ("clip.mp4", data, {"bytes": data, "path": None})
    )
    assert of_path == of_bytes == of_row
    members = {"json": b'{"question": "What happens?", "answer": "7"}', "mp4": data}
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"a.{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    ((_, build),) = read_corpus("questions", RowsConfig(path=str(tmp_path / "rows.tar")))
    assert build().videos == of_path.videos


def test_frames_at_uneven_times_keep_their_times(tmp_path: Path):
    write_clip(tmp_path / "clip.mkv", times=[0, 1, 2, 20, 21, 40])
    (video,) = read(tmp_path, FramesConfig(fps=1.0), videos=["clip.mkv"]).videos
    assert video.fps == 1_000.0
    assert greys(video) == [0, 2, 3, 4, 5]
    assert video.seconds == pytest.approx((0, 0.2, 2.0, 2.1, 4.0))


def test_folders_and_lists_of_frames_stay_as_they_are(tmp_path: Path):
    rng = np.random.default_rng(0)
    images = [draw_png((56, 28), rng) for _ in range(12)]
    (tmp_path / "frames").mkdir()
    for number, image in enumerate(images):
        (tmp_path / "frames" / f"{number}.png").write_bytes(image)
    (folder,) = read(tmp_path, FramesConfig(fps=4.0), videos=[{"frames": "frames", "fps": 4}]).videos
    assert list(folder.frames) == images and folder.indices == tuple(range(12))
    (some,) = read(tmp_path, FramesConfig(fps=1.0), video={"frames": images, "fps": 4}).videos
    assert some.indices == (0, 4, 8) and some.seconds == (0.0, 1.0, 2.0)
    stamped = {"frames": images[:3], "timestamps": [1.0, 1.5, 4.0]}
    (uneven,) = read(tmp_path, video=stamped).videos
    assert uneven.seconds == (0.0, 0.5, 3.0) and uneven.num_source_frames == 4_500


def test_parts_of_a_conversation_hold_videos(tmp_path: Path):
    write_clip(tmp_path / "clip.mp4")
    parts = [
        {"type": "text", "text": "Look: "},
        {"type": "video", "video": "clip.mp4"},
        {"type": "text", "text": " What?"},
    ]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "<answer>7</answer>"}]
    row = Row(fields={"messages": turns}, corpus="messages", number=0, images=tmp_path)
    sample = CORPORA["messages"].read(row)
    assert sample.messages[1].content == "Look: <video> What?" and len(sample.videos) == 1
    turns[0]["content"] = [{"type": "input_audio", "input_audio": "x.wav"}, {"type": "text", "text": "What?"}]
    with pytest.raises(BadSample, match="sound is not supported") as caught:
        CORPORA["messages"].read(row)
    assert caught.value.reason == "audio"


def test_what_cannot_be_read_is_named(tmp_path: Path):
    whole = write_clip(tmp_path / "clip.mp4", frames=60).read_bytes()
    (tmp_path / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    write_sound(tmp_path / "song.mkv")
    cases: list[tuple[str, object, str]] = [
        ("video", "torn.mp4", "torn.mp4 cannot be decoded"),
        ("video", "text.mp4", "text.mp4 cannot be decoded"),
        ("audio", "song.mkv", "song.mkv: sound is not supported"),
        ("audio", "song.wav", "song.wav: sound is not supported"),
        ("video", "gone.mp4", "No such file or directory; is rows.images the right folder"),
        ("video", "../clip.mp4", "leads out of"),
        ("video", "https://x.org/clip.mp4", "is an address"),
        ("schema", ".", "FOLDER, fps: RATE"),
        ("schema", {"frames": [b"1", b"2"]}, "a rate from 0.0001 to 10000, or timestamps"),
        (
            "video",
            {"frames": [draw_png((28, 28), np.random.default_rng(0))] * 2, "timestamps": [1, 0.5]},
            "ascend",
        ),
    ]
    for reason, value, words in cases:
        with pytest.raises(BadSample, match=words) as caught:
            read(tmp_path, videos=[value])
        assert caught.value.reason == reason, value
    with pytest.raises(BadSample, match="2 videos; give each its mark"):
        read(tmp_path, videos=["clip.mp4", "clip.mp4"], question="<video> What?")
    with pytest.raises(BadSample, match="audio: sound is not supported"):
        read(tmp_path, audio="song.mkv")


def test_an_import_skips_and_counts_broken_videos(tmp_path: Path):
    write_clip(tmp_path / "clip.mp4")
    (tmp_path / "text.mp4").write_bytes(b"no video")
    rows = [{"question": f"What is {n}?", "answer": str(n), "video": "clip.mp4"} for n in range(3)]
    rows.insert(1, {**rows[0], "video": "text.mp4"})
    (tmp_path / "rows.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    config = ImportConfig(
        rows=RowsConfig(path=str(tmp_path / "rows.jsonl")), out=str(tmp_path / "out"), max_bad_samples=1
    )
    report = import_corpus("questions", config)
    assert report.samples == 3 and report.bad.counts == {"video": 1}
    assert "row 1" in report.bad.first["video"] and "text.mp4" in report.bad.first["video"]
    assert [len(sample.videos) for sample in read_shards(tmp_path / "out")] == [1, 1, 1]


def test_no_value_of_a_row_stops_an_import(tmp_path: Path):
    """Each is a bad row, counted and named."""
    write_clip(tmp_path / "clip.mp4")
    image = draw_png((28, 28), np.random.default_rng(0))
    (tmp_path / "1.png").write_bytes(image)
    Image.new("L", (70_000, 100)).save(tmp_path / "wide.png")
    bad: list[object] = [
        "a\0b.mp4",
        "a" * 5_000 + ".mp4",
        "\ud800.mp4",
        "data:video/mp4;base64,AAAA",
        "data:video/mp4,AAAA",
        "file://elsewhere/clip.mp4",
        {"frames": "clip.mp4", "fps": 1},
        {"frames": "a\0b", "fps": 1},
        *({"frames": ["1.png", "1.png"], "timestamps": stamps} for stamps in (7, "01", [0, float("inf")])),
        *(
            {"frames": ["1.png", "1.png"], "timestamps": stamps}
            for stamps in ([0, float("nan")], [0, 10**400])
        ),
        {"frames": ["1.png", "1.png"], "timestamps": [0, 1e11]},
        *({"frames": ["1.png", "1.png"], "fps": fps} for fps in (1e-300, 1e300, 10**400, float("nan"), -1)),
        ["1.png", "1.png"],
        "1.png",
        image,
    ]
    for value in bad:
        with pytest.raises(BadSample) as caught:
            read(tmp_path, videos=[value])
        assert caught.value.reason in ("video", "schema") and len(str(caught.value)) < 800, value
    wide = write_clip(tmp_path / "wide.avi", codec="mjpeg", size=(65_500, 8), frames=1)
    with pytest.raises(BadSample, match="times longer than wide"):
        read(tmp_path, FramesConfig(max_pixels=3_136), videos=[wide.name])


def test_extreme_rates_of_the_config_keep_all_frames_or_one(tmp_path: Path):
    write_clip(tmp_path / "clip.mp4")
    assert len(read(tmp_path, FramesConfig(fps=1e308), video="clip.mp4").videos[0].frames) == 6
    assert len(read(tmp_path, FramesConfig(fps=1e-308), video="clip.mp4").videos[0].frames) == 1


def test_images_in_place_of_a_video_are_named_with_the_fix(tmp_path: Path):
    for value in (["1.jpg", "2.jpg"], [["1.jpg", "2.jpg"]], "1.JPG"):
        with pytest.raises(BadSample, match="give the frames of a video as {frames"):
            read(tmp_path, videos=value)


def test_data_urls_hold_videos(tmp_path: Path):
    data = write_clip(tmp_path / "clip.mp4").read_bytes()
    url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    assert read(tmp_path, video=url).videos == read(tmp_path, video="clip.mp4").videos


def test_ids_depend_on_the_times_of_frames(tmp_path: Path):
    images = [draw_png((28, 28), np.random.default_rng(0))] * 2
    values = [{"frames": images, "fps": 1}, {"frames": images, "fps": 2}]
    values.append({"frames": images, "timestamps": [0, 1]})
    assert len({read(tmp_path, video=value).id for value in values}) == 3


def test_two_columns_may_not_hold_different_videos(tmp_path: Path):
    write_clip(tmp_path / "clip.mp4")
    assert len(read(tmp_path, videos=["clip.mp4"], video="clip.mp4").videos) == 1
    with pytest.raises(BadSample, match="put all of them into `videos`"):
        read(tmp_path, videos=["clip.mp4"], video="other.mp4")


def test_a_column_of_sound_that_holds_nothing_is_none(tmp_path: Path):
    write_clip(tmp_path / "clip.mp4")
    for nothing in ({"bytes": None, "path": None}, [], [None], "", float("nan")):
        assert read(tmp_path, video="clip.mp4", audio=nothing).videos
    with pytest.raises(BadSample, match="audio: sound is not supported"):
        read(tmp_path, video="clip.mp4", audio={"bytes": b"RIFF", "path": None})
