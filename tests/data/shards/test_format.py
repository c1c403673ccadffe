"""Samples are read back exactly, also by webdataset; torn and corrupt shards are bad samples."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import BadSample
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import find_wrong_fields, read_sample, read_shards, to_fields
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message, Sample, SampleRef
from tests.helpers.videos import ask_about, draw_png, make_video


def make_samples(count: int = 23) -> list[Sample]:
    """Digits, and between them texts and samples of several images with troublesome ids."""
    samples = list(digit_samples("train", count, 0))
    jpeg = io.BytesIO()
    Image.new("RGB", (40, 60), "red").save(jpeg, "JPEG")
    turns = (
        Message(role="user", content="größer\n<image> <image>"),
        Message(role="assistant", content="√2 ≠ 1.5"),
    )
    samples[4] = Sample(
        id="we/ird.id.with.dots/ü", source="odd", messages=turns, images=(jpeg.getvalue(), b"what?")
    )
    samples[5] = Sample(id="text only", source="odd", messages=turns[1:], metadata={"b": 1, "a": 0.5})
    return samples


@pytest.fixture
def folder(tmp_path):
    write_shards(make_samples(), tmp_path / "shards", ShardConfig(samples_per_shard=10))
    return tmp_path / "shards"


def test_random_and_sequential_reading_return_the_samples(folder):
    samples, index = make_samples(), ShardIndex.load(folder)
    assert len(index) == 23 and len(index.shards) == 3
    assert [ref.id for ref in index] == [sample.id for sample in samples]
    assert [read_sample(folder, ref) for ref in index] == samples
    assert list(read_shards(folder)) == samples


def test_any_webdataset_reader_can_read_them(folder):
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    records = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [record["json"]["id"] for record in records] == [sample.id for sample in make_samples()]
    assert records[0]["0.png"].size == Image.open(io.BytesIO(make_samples()[0].images[0])).size
    assert records[4]["0.jpg"].size == (40, 60)
    assert "0.png" not in records[5]


def test_a_torn_shard_loses_the_samples_after_the_tear(folder):
    index = ShardIndex.load(folder)
    path = folder / index.shards[0].file
    path.write_bytes(path.read_bytes()[: index[6].offset + 2_000])
    assert read_sample(folder, index[5]) == make_samples()[5]
    for number in (6, 7, 9):
        with pytest.raises(BadSample, match=r"shard-000000-0000\.tar") as caught:
            read_sample(folder, index[number])
        assert caught.value.reason == "unreadable" and index[number].id in str(caught.value)


def test_a_torn_image_is_refused(folder):
    refs = ShardIndex.load(folder)
    path = folder / refs[6].shard
    path.write_bytes(
        path.read_bytes()[: refs[7].offset - 600]
    )  # members end at most 511 bytes before the next
    with pytest.raises(BadSample, match="the shard is torn"):
        read_sample(folder, refs[6])


def test_a_member_that_the_json_does_not_name_is_refused(folder):
    refs = ShardIndex.load(folder)
    both = replace(refs[0], size=refs[0].size + refs[1].size, crc32=None)
    with pytest.raises(BadSample, match="schema: its json member does not name all of its members"):
        read_sample(folder, both)


def test_any_damage_to_a_header_is_caught(folder):
    ref = ShardIndex.load(folder)[2]
    path = folder / ref.shard
    whole = path.read_bytes()
    for place in (0, 50, 110, 130, 150, 300):
        path.write_bytes(whole[: ref.offset + place] + b"\xa5" + whole[ref.offset + place + 1 :])
        with pytest.raises(BadSample, match="checksum"):
            read_sample(folder, ref)
        with pytest.raises(BadSample, match="unreadable"):
            read_sample(folder, replace(ref, crc32=None))


@pytest.mark.parametrize(
    "ref",
    [
        SampleRef(
            id="digits/train/0/000001", shard="shard-000000-0000.tar", offset=0, size=4096
        ),  # another sample lies there
        SampleRef(
            id="digits/train/0/000000", shard="shard-000000-0000.tar", offset=512, size=4096
        ),  # not a header
        SampleRef(
            id="digits/train/0/000000", shard="shard-000000-0099.tar", offset=0, size=4096
        ),  # no such shard
    ],
)
def test_wrong_references_are_caught(folder, ref):
    with pytest.raises(BadSample, match="unreadable"):
        read_sample(folder, ref)


def test_videos_are_read_back_with_their_times(tmp_path):
    image = draw_png((28, 28), np.random.default_rng(0))
    samples = [
        ask_about([make_video(3, every=5), make_video(2, fps=29.97, seed=1)], [image, image], name="both"),
        make_samples()[0],
        ask_about([make_video(1)], name="one frame"),
    ]
    index = write_shards(samples, tmp_path)
    assert list(read_shards(tmp_path)) == samples
    assert [read_sample(tmp_path, ref) for ref in index] == samples
    rows = index.rows(0)
    assert rows.videos == (((3, 56, 84), (2, 56, 84)), (), ((1, 56, 84),))
    assert rows.images is not None and rows.images[0] == ((28, 28), (28, 28))
    text = sum(len(message.content) for message in samples[0].messages) // 4
    assert rows.tokens[0] == text + 2 * 1 + (2 + 1) * 6  # of 3 frames the last is repeated


def test_samples_without_videos_have_the_bytes_of_before(tmp_path):
    (shard,) = write_shards(make_samples()[:6], tmp_path).shards
    assert b'"videos"' not in (tmp_path / shard.file).read_bytes()
    assert '"videos"' not in (tmp_path / shard.file).with_suffix(".index.json").read_text()


def test_a_cap_scales_frames_down(tmp_path):
    sample = ask_about([make_video(3, size=(112, 112))], [draw_png((28, 28), np.random.default_rng(0))])
    index = write_shards([sample], tmp_path, ShardConfig(max_pixels=7_000))
    assert index.shards[0].scaled == 3
    rows = index.rows(0)
    assert rows.videos is not None
    assert rows.videos == (((3, 56, 56),),)
    read = read_sample(tmp_path, index[0])
    assert read.images == sample.images and read.videos[0].indices == sample.videos[0].indices


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(fps="4"), r"videos\[0\].fps"),
        (dict(indices=[0, 1.5]), r"videos\[0\].indices: wanted whole numbers"),
        (dict(frames=[0, 1]), r"videos\[0\].frames: wanted names"),
        (dict(num_source_frames=None), r"videos\[0\].num_source_frames"),
    ],
)
def test_wrong_fields_of_a_video_are_named(change, words):
    written = to_fields(ask_about([make_video(2)]), [], [["video0-0000.png", "video0-0001.png"]])
    fields = json.loads(json.dumps(written))
    assert not list(find_wrong_fields(fields))
    fields["videos"][0] |= change
    assert any(re.search(words, wrong) for wrong in find_wrong_fields(fields))


def test_a_video_whose_numbers_do_not_fit_is_a_bad_sample(tmp_path):
    video = make_video(2)
    broken = replace(video, indices=video.indices[::-1])
    (ref,) = write_shards([ask_about([broken])], tmp_path)
    with pytest.raises(BadSample, match="must ascend from 0"):
        read_sample(tmp_path, ref)
