"""Rows are read from every kind of file and dataset, as a stream; bad rows and bad files are named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, DatasetDict

from data_pipeline.errors import BadSample
from data_pipeline.sources.readers import Fields, LoadRow, read_dataset, read_file, source_files
from tests.helpers.corpora import CLOCK, question_rows, write_corpus, write_jsonl

ROWS = question_rows(40)


def loaded(rows: Iterator[LoadRow]) -> list[Fields]:
    return [load() for load in rows]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


# ---- CSV


def test_csv_has_names_in_its_first_line(tmp_path: Path):
    path = tmp_path / "gpqa.csv"
    path.write_bytes(
        '\ufeffQuestion,Answer\r\n"What is ""x"", if\nx=1,5?","1,5"\r\nshort\r\nb,2\r\n'.encode()
    )
    first, bad, last = read_file(path)
    assert first() == {"Question": 'What is "x", if\nx=1,5?', "Answer": "1,5"}
    with pytest.raises(BadSample, match="schema: row: wanted as many values as the first line has names"):
        bad()
    assert last() == {"Question": "b", "Answer": "2"}
    path.write_text('a,b\n"1"2,3\n')
    with pytest.raises(ValueError, match=r"gpqa\.csv cannot be read: .* expected after"):
        loaded(read_file(path))


# ---- JSON


def test_json_lines_and_arrays_give_the_same_rows(tmp_path: Path):
    lines = write_jsonl(tmp_path / "a.jsonl", ROWS)
    array = tmp_path / "b.json"
    array.write_text("\ufeff" + json.dumps(ROWS, indent=3))
    misnamed = write_jsonl(tmp_path / "c.json", ROWS)
    for path in (lines, array, misnamed):
        assert loaded(read_file(path)) == ROWS


def test_array_numbers_are_python_numbers(tmp_path: Path):
    path = tmp_path / "a.json"
    row = {"whole": 7, "large": 2**70, "part": -0.1, "power": 1e300, "inside": [{"x": [1.5, True, None]}]}
    path.write_text(json.dumps([row]))
    (found,) = loaded(read_file(path))
    assert found == row and isinstance(found["part"], float) and type(found["large"]) is int


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_numbers_keep_how_they_were_written(tmp_path: Path, name: str):
    lines = [
        '{"x": 3.0, "y": [0.10]}',
        '{"x": 3.14159265358979323846264338327950288, "y": [-12345678901234567890]}',
    ]
    path = tmp_path / name
    path.write_text("\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]")
    first, second = loaded(read_file(path))
    assert (str(first["x"]), str(first["y"][0])) == ("3.0", "0.10") and first["x"] == 3
    assert str(second["x"]) == "3.14159265358979323846264338327950288" and second["y"] == [
        -12345678901234567890
    ]
    copied = pickle.loads(pickle.dumps(first["y"][0]))
    assert copied == 0.1 and str(copied) == "0.10" and json.dumps(first) == '{"x": 3.0, "y": [0.1]}'


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"answer": 1, "answer": 2}', "has the name 'answer' twice"),
        ('{"a": [{"b": 1, "c": 2, "b": 1}]}', "has the name 'b' twice"),
        ('{"answer": 1e999}', "too large a number"),
    ],
)
def test_ambiguous_object_is_a_bad_row(tmp_path: Path, name: str, line: str, message: str):
    path = tmp_path / name
    path.write_text(f"{line}\n" + '{"x": 1}' if name == "a.jsonl" else f'[{line}, {{"x": 1}}]')
    bad, good = read_file(path)
    with pytest.raises(BadSample, match=f"unreadable: .*{message}"):
        bad()
    assert good() == {"x": 1}


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_nan_in_a_line_is_a_bad_row(tmp_path: Path, name: str):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"answer": {name}}}\n')
    with pytest.raises(BadSample, match=f"line 1 is not JSON: it holds {name}, .*write null"):
        loaded(read_file(path))


def test_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in ROWS))
    assert loaded(read_file(path)) == ROWS


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_lines_are_named(tmp_path: Path, compress: Callable[[bytes], bytes]):
    path = tmp_path / "a.jsonl"
    path.write_bytes(compress(b'{"a": 1}\n'))
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read: it is compressed with .*; unpack it"):
        loaded(read_file(path))


def test_utf_16_is_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-16")
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read: it is UTF-16; convert it: iconv"):
        loaded(read_file(path))


def test_large_array_is_read_in_constant_memory(tmp_path: Path):
    path = tmp_path / "big.json"
    path.write_text(json.dumps([{"question": "x" * 1_000, "answer": number} for number in range(30_000)]))
    tracemalloc.start()
    assert sum(1 for load in read_file(path) if load()) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # read at once, the array takes more than its 30 MB; a stream holds a few buffers of 64 KiB
    assert peak < path.stat().st_size / 10, f"{peak / 1e6:.1f} MB"


def test_broken_line_is_a_bad_row_and_reading_continues(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"answer": 1}\n{"answer": \n[1, 2]\n\n{"answer": "\xff"}\n{"answer": 4}\n')
    good, broken, no_object, no_utf8, last = read_file(path)
    assert good() == {"answer": 1} and last() == {"answer": 4}
    with pytest.raises(BadSample, match="unreadable: line 2 is not JSON"):
        broken()
    with pytest.raises(BadSample, match="schema: row: wanted an object of columns, saw a list of 2"):
        no_object()
    assert no_utf8() == {"answer": "\udcff"}, "the row's own adapter refuses broken bytes"


def test_array_item_that_is_no_object_is_a_bad_row(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(f'[{{"answer": 1}}, 2, {"[" * 5_000}{"]" * 5_000}, {{"answer": 4}}]')
    first, number, deep, last = read_file(path)
    assert first() == {"answer": 1} and last() == {"answer": 4}
    for load, message in ((number, "wanted an object of columns, saw int 2"), (deep, "nested too deeply")):
        with pytest.raises(BadSample, match=message):
            load()


@pytest.mark.parametrize("cut", [1, 20, 400])
def test_truncated_array_is_an_error_that_names_the_file(tmp_path: Path, cut: int):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS)[:-cut])
    with pytest.raises(ValueError, match=r"a\.json cannot be read: .*write the JSON array again"):
        loaded(read_file(path))


@pytest.mark.parametrize("text", ["[NaN]", '[{"a": 1}] []', '[{"a": 1},, {"a": 2}]', '[{"a": "\udc80"}]'])
def test_array_that_is_not_json_is_an_error(tmp_path: Path, text: str):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"a\.json cannot be read"):
        loaded(read_file(path))


# ---- Parquet and `datasets`


def test_parquet_images_stay_the_bytes_they_are(tmp_path: Path):
    rows = loaded(read_file(write_corpus("mmfinereason", tmp_path)))
    assert rows[1]["image"]["bytes"] == CLOCK


def test_parquet_is_read_in_constant_memory(tmp_path: Path):
    rows = {"image": [random.Random(number).randbytes(10_000) for number in range(3_000)]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet", batch_size=500)
    before, pool = pyarrow.total_allocated_bytes(), pyarrow.total_allocated_bytes
    peak = max(pool() - before for _ in read_file(tmp_path / "a.parquet"))
    assert peak < 15e6, f"{peak / 1e6:.0f} MB of 30"  # one of six row groups, decoded twice at most


def test_folder_is_read_by_split(tmp_path: Path):
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        Dataset.from_list(ROWS[number : number + 1]).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("a card")

    def ids(split: str) -> list[object]:
        return [
            row["id"] for path in source_files(str(tmp_path), split=split) for row in loaded(read_file(path))
        ]

    assert ids("train") == ["q0", "q1"] and ids("test") == ["q2"] and len(ids("")) == 3
    with pytest.raises(ValueError, match=r"split='dev'; it holds test-00000"):
        source_files(str(tmp_path), split="dev")


def test_folder_saved_by_datasets_is_read(tmp_path: Path):
    one, two = Dataset.from_list(ROWS[:3]), Dataset.from_list(ROWS[3:5])
    one.save_to_disk(tmp_path / "one")
    DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    DatasetDict({"test": two}).save_to_disk(tmp_path / "test_only")
    assert source_files(str(tmp_path / "one")) == source_files(str(tmp_path / "both")) == []
    assert loaded(read_dataset(str(tmp_path / "one"))) == ROWS[:3]
    assert loaded(read_dataset(str(tmp_path / "both"))) == ROWS[:3]
    assert loaded(read_dataset(str(tmp_path / "both"), split="test")) == ROWS[3:5]
    assert loaded(read_dataset(str(tmp_path / "test_only"))) == ROWS[3:5]
    with pytest.raises(ValueError, match="must be one of train, test"):
        loaded(read_dataset(str(tmp_path / "both"), split="dev"))


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_corpus("mmk12", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pyarrow.*; install that package with pip"):
        loaded(read_file(path))


# ---- WebDataset


def test_foreign_webdataset_tars_are_read(tmp_path: Path):
    fields = {"question": "What time is it?", "answer": "3:00"}
    path = write_tar(
        tmp_path / "a.tar",
        {
            "x/1.json": json.dumps(fields).encode(),
            "x/1.10.jpg": CLOCK + b"10",
            "x/1.2.jpg": CLOCK,
            "x/2.txt": b"a caption",
            "x/3.json": b"{",
            "x/4.json": b"[]",
        },
    )
    first, second, broken, no_object = read_file(path)
    assert first() == {"id": "x/1", **fields, "images": [CLOCK, CLOCK + b"10"]}
    assert second() == {"id": "x/2", "txt": "a caption"}
    with pytest.raises(BadSample, match="unreadable: x/3"):
        broken()
    with pytest.raises(BadSample, match=r"schema: x/4\.json: wanted an object"):
        no_object()


# ---- sources that cannot be read


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_truncated_file_is_named(tmp_path: Path, name: str):
    whole = write_tar(tmp_path / "whole", {"1.json": b"{}", "1.png": CLOCK}).read_bytes()
    (tmp_path / name).write_bytes(whole[:1_200])
    with pytest.raises(ValueError, match=rf"{name}.* cannot be read"):
        loaded(read_file(tmp_path / name))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "neither a file nor a folder"),
        ("a/b/c", "neither a file nor a folder"),
        ("a.tsv", "convert it"),
        ("empty", "holds no"),
    ],
)
def test_unknown_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str):
    monkeypatch.chdir(tmp_path)
    Path("a.tsv").write_text("a\tb")
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=message):
        [loaded(read_file(file)) for file in source_files(path)]
