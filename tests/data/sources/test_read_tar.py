"""No record of a foreign tar loses a part and stays plausible: it is whole, or a bad row that says what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import logging
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from data_pipeline.errors import BadSample
from data_pipeline.shards.format import read_shards
from data_pipeline.sources.config import ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import import_corpus
from data_pipeline.sources.readers import read_file, source_files
from tests.helpers.corpora import CLOCK, TRIANGLE

Member = tuple[str, bytes]
APPLE = b"\0\5\x16\7\0\2\0\0Mac OS X        "


def write_tar(path: Path, members: list[Member], **options) -> Path:
    with tarfile.open(path, "w", **options) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def record(key: str, count: int = 1, /, **fields: object) -> list[Member]:
    row = {"question": f"What is {key}?", "answer": "1", **fields}
    names = ["png"] if count == 1 else [f"{n}.png" for n in range(count)]
    return [(f"{key}.json", json.dumps(row).encode()), *((f"{key}.{name}", TRIANGLE) for name in names)]


def rows(path: Path) -> Iterator[Any]:
    """Yields the fields of good rows and the errors of bad ones."""
    for load in read_file(path):
        try:
            yield load()
        except BadSample as error:
            yield error


def test_companions_of_macos_cost_no_record_its_image(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """As macOS packs a folder: `._name` before each file that has attributes."""
    import webdataset

    members = [member for n in range(60) for member in record(f"corpus/{n:03}")]
    members.insert(2 * 30 + 1, ("corpus/._030.png", APPLE))
    members.insert(0, ("corpus/.DS_Store", b"x"))
    path = write_tar(tmp_path / "a.tar", members)
    theirs = list(webdataset.WebDataset([str(path)], shardshuffle=False))
    assert any("json" in each and "png" not in each for each in theirs), "webdataset loses the image of one"
    with caplog.at_level(logging.WARNING):
        report = import_corpus(
            "questions", ImportConfig(rows=RowsConfig(path=str(path)), out=str(tmp_path / "shards"))
        )
    assert (report.rows, report.samples) == (60, 60)
    assert [len(sample.images) for sample in read_shards(tmp_path / "shards")] == [1] * 60
    (said,) = [each.getMessage() for each in caplog.records if "left out" in each.getMessage()]
    assert "2 of its members left out, the first at byte 0, member corpus/.DS_Store: a file of macOS" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x/._1.png", "macOS"),
        ("__MACOSX/x/._1.png", "macOS"),
        ("__MACOSX/1.png", "macOS"),
        ("x/.DS_Store", "macOS"),
        ("PaxHeader/1.png", "extended header"),
        ("x/PaxHeaders.1234/1.png", "extended header"),
        ("x/Thumbs.db", "Windows"),
        ("x/.hidden.json", "hidden"),
        ("README", "no key and extension"),
        ("x/LICENSE", "no key and extension"),
    ],
)
@pytest.mark.parametrize("place", range(5))
def test_what_belongs_to_no_record_separates_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, said: str, place: int
):
    members = [*record("x/1"), *record("x/2")]
    members.insert(place, (name, APPLE))
    path = write_tar(tmp_path / "a.tar", members)
    assert [(row["id"], row["images"]) for row in rows(path)] == [("x/1", [TRIANGLE]), ("x/2", [TRIANGLE])]
    (warning,) = caplog.messages
    assert f"member {name}: " in warning and said in warning


def test_a_key_that_comes_back_is_one_bad_row_that_names_both_places(tmp_path: Path):
    one, two, three = record("1"), record("2"), record("3")
    path = write_tar(tmp_path / "a.tar", [one[0], two[0], one[1], two[1], *three])
    first, second, good = rows(path)
    assert isinstance(first, BadSample) and isinstance(second, BadSample)
    assert str(first).startswith(
        "schema: 1: byte 2048, member 1.png: another record lies between its members"
    )
    assert "begin at byte 0" in str(first) and "tar --sort=name" in str(first)
    assert "byte 3072, member 2.png" in str(second) and "begin at byte 1024" in str(second)
    assert isinstance(good, dict) and good["id"] == "3"


def test_random_damage_makes_a_record_bad_and_never_smaller(tmp_path: Path):
    """Moves, doubles, links and companions; whatever is not a bad row has all of its images."""
    rng = random.Random(0)
    for number in range(60):
        count = {f"d/{n}": rng.randint(0, 3) for n in range(8)}
        members = [member for key, images in count.items() for member in record(key, images)]
        for _ in range(rng.randint(1, 4)):
            at, to = rng.randrange(len(members)), rng.randrange(len(members))
            damage = rng.choice(["move", "double", "companion"])
            if damage == "move":
                members.insert(to, members.pop(at))
            elif damage == "double":
                members.insert(to, members[at])
            else:
                members.insert(to, (members[at][0].replace("d/", "d/._"), APPLE))
        found = list(rows(write_tar(tmp_path / f"{number}.tar", members)))
        good = {row["id"]: len(row.get("images", [])) for row in found if not isinstance(row, BadSample)}
        bad = [str(row).split(": ")[1] for row in found if isinstance(row, BadSample)]
        assert sorted([*good, *bad]) == sorted(count), "every key once"
        assert good.items() <= count.items()


@pytest.mark.parametrize(
    ("kind", "said"),
    [(tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a link"), (tarfile.FIFOTYPE, "a device")],
)
@pytest.mark.parametrize("has_json", [True, False])
def test_a_link_in_place_of_an_image_is_a_bad_row(tmp_path: Path, kind: bytes, said: str, has_json: bool):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for name, data in record("1")[:1] if has_json else []:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = kind, "2.png"
        file.addfile(link)
    (row,) = rows(path)
    assert isinstance(row, BadSample) and f"member 1.png: {said}, not a file; write the tar with" in str(row)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            record("1", 1, images=["0.png", "1.png"]),
            "image: 1: the json names 2 images, the tar holds 1 (png)",
        ),
        (record("1", 2, image="0.png"), "image: 1: the json names 1 images, the tar holds 2 (0.png, 1.png)"),
        (
            [*record("1"), ("1.png", CLOCK)],
            "schema: 1: byte 2048, member 1.png: the same name again, first at byte",
        ),
        ([*record("1"), ("1.PNG", CLOCK)], "the same name again"),
        ([*record("1"), ("1.txt", b"a"), ("1.json", b"{}")], "the same name again"),
        (
            record("v1.5_a"),
            "schema: v1.5_a.json: WebDataset ends a key at the first dot of the file name, here after",
        ),
        ([*record("1", question="a"), ("1.question", b"b")], None),
        ([("1.json", b'{"txt": "a"}'), ("1.txt", b"b")], "txt is a member and another text in its json"),
        ([("1.json", b'{"a": 1, "a": 2}')], "unreadable: 1: an object has the name 'a' twice"),
        ([("1.json", b'{"a": NaN}')], "unreadable: 1: it holds NaN"),
    ],
)
def test_records_that_contradict_themselves_are_bad_rows(
    tmp_path: Path, members: list[Member], message: str | None
):
    (row,) = rows(write_tar(tmp_path / "a.tar", members))
    if message is None:  # what is no text is an image, and no image is refused by the row's adapter
        assert isinstance(row, dict) and row["images"] == [TRIANGLE, b"b"]
    else:
        assert isinstance(row, BadSample) and message in str(row)


def test_images_come_in_the_order_that_the_json_names(tmp_path: Path):
    members = [
        ("1.json", b'{"images": ["b.PNG", "a.png"], "image": "x"}'),
        ("1.a.png", CLOCK),
        ("1.b.png", TRIANGLE),
    ]
    (row,) = rows(write_tar(tmp_path / "a.tar", members))
    assert row == {"id": "1", "images": [TRIANGLE, CLOCK]}


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_gzipped_tars_are_read_alone_and_in_a_folder(tmp_path: Path, name: str):
    plain = write_tar(tmp_path / "plain", [*record("1"), *record("2", 2)]).read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(gzip.compress(plain))
    assert source_files(str(folder)) == [folder / name]
    assert [len(row["images"]) for row in rows(folder / name)] == [1, 2]
    (folder / name).write_bytes(gzip.compress(plain)[:-200])
    with pytest.raises(ValueError, match=f"{name} cannot be read: Compressed file ended"):
        list(rows(folder / name))
    damaged = bytearray(gzip.compress(plain))
    damaged[len(damaged) // 2] ^= 0xFF
    (folder / name).write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{name} cannot be read: "):
        list(rows(folder / name))


def test_other_compression_is_named_with_the_fix(tmp_path: Path):
    cases: list[tuple[Literal["w:xz", "w:bz2"], str]] = [("w:xz", "xz"), ("w:bz2", "bzip2")]
    for mode, said in cases:
        with tarfile.open(tmp_path / "a.tar", mode) as file:
            file.addfile(tarfile.TarInfo("a.json"), io.BytesIO())
        with pytest.raises(ValueError, match=rf"it is compressed with {said}; unpack it \({said} -d\)"):
            list(rows(tmp_path / "a.tar"))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_whole_records_are_those_of_webdataset(tmp_path: Path, format: int):
    import webdataset

    rng = random.Random(format)
    keys = [f"{'./' * rng.randint(0, 1)}{'long/' * rng.choice([0, 1, 15])}größe v{n}" for n in range(30)]
    members = [member for key in keys for member in record(key, rng.randint(0, 12))]
    path = write_tar(tmp_path / "a.tar", [("__meta__", b"x"), *members], format=format)
    theirs = webdataset.WebDataset([str(path)], shardshuffle=False)
    wanted = [(each["__key__"], sum("png" in name for name in each)) for each in theirs]
    assert [(row["id"], len(row.get("images", []))) for row in rows(path)] == wanted
    assert [key for key, _ in wanted] == keys


def test_videos_come_in_the_order_that_the_json_names(tmp_path: Path):
    def ordered(fields: bytes) -> object:
        members = [("1.json", fields), ("1.b.mp4", b"b"), ("1.a.mp4", b"a")]
        (row,) = rows(write_tar(tmp_path / "a.tar", members))
        return row

    assert ordered(b'{"videos": ["b.mp4", "a.mp4"], "video": "x"}') == {"id": "1", "videos": [b"b", b"a"]}
    assert ordered(b"{}") == {"id": "1", "videos": [b"a", b"b"]}
    assert "the json names 1 videos, the tar holds 2" in str(ordered(b'{"video": "a.mp4"}'))


def test_a_member_of_sound_is_no_image(tmp_path: Path):
    (row,) = rows(write_tar(tmp_path / "a.tar", [*record("1"), ("1.wav", b"RIFF")]))
    assert row["images"] == [TRIANGLE] and row["audio"] == ["wav"]
