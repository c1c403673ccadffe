"""The index describes its files, gives references by number, and refuses what it cannot describe."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from data_pipeline.shards.config import ShardConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(digit_samples("train", 23, 0), tmp_path / "shards", ShardConfig(samples_per_shard=10))
    return tmp_path / "shards"


def test_an_index_is_a_sequence_of_references(folder):
    refs = ShardIndex.load(folder)
    assert refs[-1] == refs[22] and list(refs) == [refs[number] for number in range(len(refs))]
    with pytest.raises(IndexError):
        refs[23]


def test_index_describes_its_files(folder):
    index = json.loads((folder / "index.json").read_text())
    assert [shard["count"] for shard in index["shards"]] == [10, 10, 3]
    for shard in index["shards"]:
        data = (folder / shard["file"]).read_bytes()
        assert len(data) == shard["bytes"] and hashlib.sha256(data).hexdigest() == shard["sha256"]
        with tarfile.open(folder / shard["file"]) as tar:
            starts = [member.offset for member in tar if member.name.endswith(".json")]
        rows = json.loads((folder / shard["file"].replace(".tar", ".index.json")).read_text())
        assert rows["offsets"] == starts


def test_shard_names_outside_of_the_folder_are_refused(folder):
    text = (folder / "index.json").read_text()
    (folder / "index.json").write_text(text.replace("shard-000000-0001.tar", "../shard-000000-0001.tar"))
    with pytest.raises(ValueError, match="plain file name"):
        ShardIndex.load(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"shards": [{"file": "a.tar"}]}', '{"version": 1}'])
def test_a_broken_index_is_refused(folder, text):
    (folder / "index.json").write_text(text)
    with pytest.raises(ValueError, match="not an index of shards"):
        ShardIndex.load(folder)


def test_rows_of_another_shard_are_refused(folder, tmp_path):
    write_shards(digit_samples("train", 4, 0), tmp_path / "few")
    (folder / "shard-000000-0000.index.json").write_bytes(
        (tmp_path / "few" / "shard-000000-0000.index.json").read_bytes()
    )
    with pytest.raises(ValueError, match="lists 4 samples where index.json counts 10"):
        ShardIndex.load(folder)[0]
