"""Same samples, same bytes; readable by webdataset; exact random access; torn and forged files are caught."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest
from PIL import Image

from data_pipeline.errors import BadSample
from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.format import read_sample, read_shards
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message, Sample, SampleRef


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


def test_random_and_sequential_reading_give_the_samples_back(folder):
    samples, index = make_samples(), ShardIndex.load(folder)
    assert len(index) == len(index.refs) == 23 and len(index.shards) == 3
    assert [ref.id for ref in index.refs] == [sample.id for sample in samples]
    assert [read_sample(folder, ref) for ref in index.refs] == samples
    assert list(read_shards(folder)) == samples


def test_refs_are_a_sequence(folder):
    refs = ShardIndex.load(folder).refs
    assert refs[-1] == refs[22] and refs[8:12] == [refs[8], refs[9], refs[10], refs[11]]
    with pytest.raises(IndexError):
        refs[23]


def test_any_webdataset_reader_can_read_them(folder):
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    records = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [record["json"]["id"] for record in records] == [sample.id for sample in make_samples()]
    assert records[0]["0.png"].size == Image.open(io.BytesIO(make_samples()[0].images[0])).size
    assert records[4]["0.jpg"].size == (40, 60)
    assert "0.png" not in records[5]


def test_index_tells_the_truth(folder):
    index = json.loads((folder / "index.json").read_text())
    assert [shard["count"] for shard in index["shards"]] == [10, 10, 3]
    for shard in index["shards"]:
        data = (folder / shard["file"]).read_bytes()
        assert len(data) == shard["bytes"] and hashlib.sha256(data).hexdigest() == shard["sha256"]
        with tarfile.open(folder / shard["file"]) as tar:
            starts = [member.offset for member in tar if member.name.endswith(".json")]
        rows = json.loads((folder / shard["file"].replace(".tar", ".index.json")).read_text())
        assert rows["offsets"] == starts


def test_same_samples_same_bytes(folder, tmp_path):
    write_shards(iter(make_samples()), tmp_path / "again", ShardConfig(samples_per_shard=10))
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert ShardIndex.load(folder).digest == ShardIndex.load(tmp_path / "again").digest
    other = write_shards(make_samples()[1:], tmp_path / "other")
    assert other.digest != ShardIndex.load(folder).digest


def test_tokens_are_estimated_without_trusting_images(folder):
    index = ShardIndex.load(folder)
    assert index.tokens(4) == sum(len(m.content) for m in make_samples()[4].messages) // 4 + 40 * 60 // 784
    assert index.tokens(0) > index.tokens(5)


def test_a_killed_write_leaves_no_index_and_can_be_repeated(tmp_path):
    def dying():
        yield from make_samples()[:15]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(dying(), tmp_path, ShardConfig(samples_per_shard=10))
    with pytest.raises(ValueError, match=r"index\.json does not exist"):
        ShardIndex.load(tmp_path)
    write_shards(make_samples(), tmp_path, ShardConfig(samples_per_shard=10))
    assert list(read_shards(tmp_path)) == make_samples()


def test_leftovers_of_a_killed_write_do_not_join_the_next(tmp_path):
    def dying():
        yield from make_samples()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(dying(), tmp_path, ShardConfig(samples_per_shard=5))
    write_shards(make_samples()[:7], tmp_path, ShardConfig(samples_per_shard=5))
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [
        "shard-000000-0000.tar",
        "shard-000000-0001.tar",
    ]
    assert not list(tmp_path.glob("*.partial"))


def test_finished_shards_are_never_overwritten(folder):
    with pytest.raises(ValueError, match="already holds shards"):
        write_shards(make_samples(), folder)


def test_tar_files_of_others_are_not_touched(tmp_path):
    (tmp_path / "shard-000000-0000.tar").write_bytes(b"precious")
    with pytest.raises(ValueError, match="not ours"):
        write_shards(make_samples(), tmp_path)
    assert (tmp_path / "shard-000000-0000.tar").read_bytes() == b"precious"


def test_a_torn_shard_is_named(folder):
    index = ShardIndex.load(folder)
    path = folder / index.shards[0].file
    path.write_bytes(path.read_bytes()[: index.refs[6].offset + 2_000])
    assert read_sample(folder, index.refs[5]) == make_samples()[5]
    for number in (6, 7, 9):
        with pytest.raises(BadSample, match=r"shard-000000-0000\.tar") as caught:
            read_sample(folder, index.refs[number])
        assert caught.value.reason == "unreadable" and index.refs[number].id in str(caught.value)


def test_an_image_is_never_read_in_part(folder):
    refs = ShardIndex.load(folder).refs
    path = folder / refs[6].shard
    path.write_bytes(
        path.read_bytes()[: refs[7].offset - 600]
    )  # members end at most 511 bytes before the next
    with pytest.raises(BadSample, match="the shard is torn"):
        read_sample(folder, refs[6])


def test_any_damage_to_a_header_is_caught(folder):
    ref = ShardIndex.load(folder).refs[2]
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


def test_an_index_that_leads_out_of_its_folder_is_refused(folder):
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace("shard-000000-0001.tar", "../shard-000000-0001.tar"))
    with pytest.raises(ValueError, match="plain file name"):
        ShardIndex.load(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"shards": [{"file": "a.tar"}]}', '{"version": 1}'])
def test_a_broken_index_is_refused(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(ValueError, match="not an index of shards"):
        ShardIndex.load(folder)


def test_a_row_file_of_other_shards_is_refused(folder, tmp_path):
    write_shards(make_samples()[:4], tmp_path / "few")
    (folder / "shard-000000-0000.index.json").write_bytes(
        (tmp_path / "few" / "shard-000000-0000.index.json").read_bytes()
    )
    with pytest.raises(ValueError, match="lists 4 samples where index.json counts 10"):
        ShardIndex.load(folder).refs[0]
