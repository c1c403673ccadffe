"""Walks through the members of a tar without trusting its headers; nothing is extracted.

`tarfile` reads as much as a header asks for, and follows sparse maps without end: a hostile file makes it hang or run
out of memory. Here a size is used only after the file was seen to have it, and every extended header has a limit.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENSION = 1 << 16
"""Bytes of an extended header, which holds a long name; write_shards writes none."""
_KINDS = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), "file"),
    **dict.fromkeys((tarfile.LNKTYPE, tarfile.SYMTYPE), "link"),
    **dict.fromkeys((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE), "device"),
    tarfile.DIRTYPE: "directory",
}
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, *_PAX, tarfile.XGLTYPE)


_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip -d"),
    b"BZh91AY&SY": ("bzip2", "bzip2 -d"),
    b"\xfd7zXZ\0": ("xz", "xz -d"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"PK\x03\x04": ("zip", "unzip, then tar"),
}
"""First bytes of compressed files -> format, and what undoes it."""


class BadTar(ValueError):
    """The tar cannot be read further."""

    def __init__(self, kind: str, offset: int, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.offset = kind, offset  # header | truncated | trailing


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """A member of a tar, and its place."""

    name: str
    kind: str  # file | link | device | directory | special
    offset: int  # of its first header
    data: int  # where its bytes begin
    size: int  # of its bytes, which are complete
    end: int  # where the next member begins

    @property
    def place(self) -> str:
        """The place in a message."""
        return f"byte {self.offset}, member {self.name}"


def walk(file: BinaryIO, length: int) -> Iterator[TarMember]:
    """Yields the members of a tar of `length` bytes; `file` may be read between them.

    Raises:
        BadTar: a header is broken, the file ends too early, or something follows its end.
    """
    file.seek(0)
    if cause := find_compression(file.read(16)):
        raise BadTar("header", 0, cause)
    offset = 0
    while member := _next_member(file, length, offset):
        yield member
        offset = member.end


def find_compression(start: bytes) -> str:
    """Returns what is wrong with a file that begins with `start`, if it is compressed; else ""."""
    found = (kind for magic, kind in _COMPRESSED.items() if start.startswith(magic))
    return next((f"it is compressed with {name}; unpack it ({undo})" for name, undo in found), "")


def _next_member(file: BinaryIO, length: int, start: int) -> TarMember | None:
    """Returns the member whose first header is at `start`; None at the end of the tar."""
    offset, fields = start, {}
    while info := _read_header(file, length, offset):
        data = offset + BLOCK
        if info.type not in _EXTENSIONS:
            return _member(info, fields, start, data, length)
        if not 0 <= info.size <= min(MAX_EXTENSION, length - data):
            raise BadTar("header", offset, f"an extended header of {info.size} bytes")
        file.seek(data)
        fields |= _parse_extension(info.type, file.read(info.size), offset)
        offset = data + _padded(info.size)
    if fields:
        raise BadTar("header", start, "an extended header without a member")
    _check_end(file, offset)
    return None


def _read_header(file: BinaryIO, length: int, offset: int) -> tarfile.TarInfo | None:
    """Returns the header at `offset`; None at the end of the tar."""
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise BadTar("truncated", offset, f"the file ends at byte {length} without a tar's empty end blocks")
    if not block.strip(b"\0"):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        raise BadTar("header", offset, f"no header of a member: {error}") from error


def _member(info: tarfile.TarInfo, fields: dict[str, str], start: int, data: int, length: int) -> TarMember:
    name = fields.get("path", info.name)
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in fields):
        raise BadTar("header", start, f"member {name} is sparse")
    try:
        size = int(fields.get("size", info.size))
    except ValueError as error:
        raise BadTar("header", start, f"member {name} has the size {fields['size'][:40]!r}") from error
    kind = _KINDS.get(info.type, "special")
    size = 0 if kind in ("link", "device", "directory") else size  # as tarfile: no bytes follow these
    if size < 0:
        raise BadTar("header", start, f"member {name} has {size} bytes")
    if data + size > length:
        raise BadTar("truncated", start, f"member {name} claims {size} bytes, {length - data} are left")
    return TarMember(name=name, kind=kind, offset=start, data=data, size=size, end=data + _padded(size))


def _parse_extension(kind: bytes, data: bytes, offset: int) -> dict[str, str]:
    """Returns the fields that an extended header sets for the member after it."""
    if kind in (_LONG_NAME, _LONG_LINK):
        text = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        return {"path": text} if kind == _LONG_NAME else {}
    fields: dict[str, str] = {}
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < 8 else 0
        if not space or not len(length) < end <= len(data):
            raise BadTar("header", offset, "an extended header that is not `length name=value`")
        key, _, value = data[len(length) + 1 : end - 1].partition(b"=")
        fields[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        data = data[end:]
    return fields if kind in _PAX else {}


def _check_end(file: BinaryIO, offset: int) -> None:
    """Checks that only empty blocks follow the end, at least one more."""
    file.seek(offset + BLOCK)
    empty = 0
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise BadTar("trailing", offset, "bytes after the end of the tar, which no reader sees")
        empty += len(chunk)
    if empty < BLOCK:
        raise BadTar("truncated", offset, "one empty block at the end instead of two")


def _padded(size: int) -> int:
    return size + -size % BLOCK
