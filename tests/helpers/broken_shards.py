"""Damages shards: edits tars member by member, forges headers, and makes a PNG decompression bomb."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

Members = list[tuple[tarfile.TarInfo, bytes]]


def edit_tar(path: Path, edit: Callable[[Members], Members]) -> None:
    """Writes the tar again with the members that `edit` returns."""
    with tarfile.open(path) as tar:
        members = [(info, reader.read()) for info in tar if (reader := tar.extractfile(info))]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in edit(members):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd" if kind != tarfile.REGTYPE else ""
    return info, data


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Returns a header that declares `size`, whatever follows."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def png_bomb(side: int = 30_000) -> bytes:
    """Returns a valid PNG of `side` x `side` black pixels, about a thousandth of their size."""
    rows = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)  # a filter byte and one bit a pixel
    data = b"".join([*(rows.compress(row * 500) for _ in range(side // 500)), rows.flush()])

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
