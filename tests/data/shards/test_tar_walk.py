"""Members of real tars equal tarfile's; torn, forged and hostile tars end with a place and a reason."""

from __future__ import annotations

import io
import tarfile

import pytest

from data_pipeline.shards.tar_walk import BLOCK, MAX_EXTENSION, BadTar, TarMember, walk
from tests.helpers.broken_shards import header

END = bytes(2 * BLOCK)
LONG = "long/" * 60 + "größe.txt"
FILES = {"a.json": b"{}", "b.png": b"x" * BLOCK, "empty.txt": b"", LONG: b"y" * 1_000}


def write_tar(
    files: dict[str, bytes], format: int = tarfile.PAX_FORMAT, kind: bytes = tarfile.REGTYPE
) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            info.linkname = "target/" * 40 if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def walk_all(data: bytes) -> list[TarMember]:
    return list(walk(io.BytesIO(data), len(data)))


def walk_bad(data: bytes) -> tuple[list[str], str, int]:
    """Names of the members before the fault, its kind and its offset."""
    names: list[str] = []
    with pytest.raises(BadTar) as caught:
        for member in walk(io.BytesIO(data), len(data)):
            names.append(member.name)
    return names, caught.value.kind, caught.value.offset


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_equal_those_of_tarfile(format: int):
    data = write_tar(FILES, format)
    members = walk_all(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
    assert [(m.name, m.offset, m.data, m.size) for m in members] == [
        (i.name, i.offset, i.offset_data, i.size) for i in infos
    ]
    assert [data[m.data : m.data + m.size] for m in members] == list(FILES.values())
    assert [m.end for m in members[:-1]] == [m.offset for m in members[1:]], "one begins where the last ends"
    assert {m.kind for m in members} == {"file"}


def test_the_file_may_be_read_between_members():
    data = write_tar(FILES)
    file = io.BytesIO(data)
    seen = []
    for member in walk(file, len(data)):
        file.seek(member.data)
        seen.append(file.read(member.size))
    assert seen == list(FILES.values())


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (tarfile.SYMTYPE, "link"),
        (tarfile.LNKTYPE, "link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.FIFOTYPE, "device"),
        (tarfile.DIRTYPE, "directory"),
        (b"Z", "special"),
    ],
)
def test_kinds_are_named_and_long_link_targets_are_skipped(format: int, kind: bytes, name: str):
    (member,) = walk_all(write_tar({LONG: b""}, format, kind))
    assert (member.name.rstrip("/"), member.kind, member.size) == (LONG, name, 0)


def test_a_link_that_declares_a_size_has_no_bytes():
    data = header("link", 1 << 40, tarfile.SYMTYPE) + header("a", 0) + END
    assert [(m.name, m.size) for m in walk_all(data)] == [("link", 0), ("a", 0)]


def test_a_global_header_changes_no_member():
    text = b"16 path=other.x\n"
    block = header("g", len(text), tarfile.XGLTYPE) + text.ljust(BLOCK, b"\0")
    (member,) = walk_all(block + header("a", 0) + END)
    assert (member.name, member.offset) == ("a", 0)
    assert walk_all(block + END) == []


@pytest.mark.parametrize("cut", ["header", "data", "padding", "end"])
def test_a_torn_tail_is_truncated_after_the_complete_members(cut: str):
    data = write_tar(FILES)
    last = walk_all(data)[1]
    length = {
        "header": last.offset + 100,
        "data": last.data + last.size - 1,
        "padding": last.end + 10,  # in the next header
        "end": walk_all(data)[-1].end + BLOCK,  # one empty block instead of two
    }[cut]
    names, kind, _ = walk_bad(data[:length])
    assert kind == "truncated"
    assert names == list(FILES)[: {"header": 1, "data": 1, "padding": 2, "end": 4}[cut]]


def test_a_file_without_end_blocks_is_truncated():
    assert walk_bad(b"") == ([], "truncated", 0)
    assert walk_bad(header("a", 0)) == (["a"], "truncated", BLOCK)


@pytest.mark.parametrize("place", [0, 110, 130, 150])
def test_a_wrong_checksum_is_a_header_error_at_its_byte(place: int):
    data = bytearray(write_tar(FILES))
    second = walk_all(bytes(data))[1].offset
    data[second + place] ^= 0x41
    assert walk_bad(bytes(data)) == (["a.json"], "header", second)


@pytest.mark.parametrize("size", [1 << 33, 1 << 60, 513])
def test_a_declared_size_beyond_the_file_is_truncated_and_allocates_nothing(size: int):
    names, kind, offset = walk_bad(header("a", 0) + header("huge", size) + bytes(BLOCK))
    assert (names, kind, offset) == (["a"], "truncated", BLOCK)


def pax(*fields: str) -> bytes:
    """An extended header of `length name=value` lines."""
    lines = ""
    for field in fields:
        length = len(field) + 2
        while len(f"{length} {field}\n") != length:
            length += 1
        lines += f"{length} {field}\n"
    return header("x", len(lines), tarfile.XHDTYPE) + lines.encode().ljust(BLOCK, b"\0")


def test_an_extended_size_and_path_replace_those_of_the_header():
    (member,) = walk_all(pax("size=5", "path=new.txt") + header("a", 0) + b"hello".ljust(BLOCK, b"\0") + END)
    assert (member.name, member.size, member.offset, member.data) == ("new.txt", 5, 0, 3 * BLOCK)


@pytest.mark.parametrize(
    "data",
    [
        pax("size=-5") + header("a", 0),
        pax("size=many") + header("a", 0),
        pax("GNU.sparse.major=1") + header("a", 0),
        pax("path=b") + END,  # no member follows
        header("a", -512),
        header("a", 512, tarfile.GNUTYPE_SPARSE) + bytes(BLOCK),
        header("a", MAX_EXTENSION + 1, tarfile.GNUTYPE_LONGNAME) + bytes(2 * MAX_EXTENSION),
        header("a", 100, tarfile.XHDTYPE) + b"999999 a=b\n".ljust(BLOCK, b"\0"),
        header("a", 100, tarfile.XHDTYPE) + b"no length\n".ljust(BLOCK, b"\0"),
    ],
    ids=[
        "negative",
        "no number",
        "sparse map",
        "alone",
        "below 0",
        "sparse",
        "long name",
        "past end",
        "no length",
    ],
)
def test_forged_headers_are_header_errors_at_the_first_byte(data: bytes):
    assert walk_bad(data + END) == ([], "header", 0)


def test_bytes_after_the_end_are_reported():
    data = write_tar({"a": b"1"})
    assert walk_bad(data + header("hidden", 0)) == (["a"], "trailing", 2 * BLOCK)
