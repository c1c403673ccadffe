"""Reads what files of lines get while others write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MARK = 64
"""Bytes before the place that was read to which must still be there, else the file is another one."""


class LineFollower:
    """Reads a file of lines from where the last call ended; half a line waits for its other half.

    A file that a resumed run has written anew, that became shorter or that was deleted begins again. With `window`,
    only lines within the last so many bytes are read when it begins, or when more than that has come since.
    """

    def __init__(self, path: Path, *, window: int | None = None) -> None:
        self._path = path
        self._window = window
        self._offset = 0
        self._mark = b""  # the last bytes before the offset

    def poll(self) -> tuple[bool, Iterator[bytes]]:
        """Returns whether the file begins again, so that earlier lines no longer count, and its new lines.

        The lines must be read to their end before the next call.
        """
        try:
            file = self._path.open("rb")
        except OSError:  # not there yet, or deleted
            begins = self._offset > 0
            self._offset, self._mark = 0, b""
            return begins, iter(())
        begins = not self._is_same(file)
        if begins:
            self._offset, self._mark = 0, b""
        return begins, self._lines(file)

    def _is_same(self, file: BinaryIO) -> bool:
        file.seek(self._offset - len(self._mark))
        return file.read(len(self._mark)) == self._mark

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        with file:
            self._skip(file)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self._mark = (self._mark + line)[-MARK:]
                yield line

    def _skip(self, file: BinaryIO) -> None:
        """Moves to the first line within the window."""
        start = file.seek(0, 2) - self._window if self._window else 0
        if start <= self._offset:
            file.seek(self._offset)
            return
        file.seek(start)
        rest = file.readline()  # of a line that begins before the window
        if rest.endswith(b"\n"):
            self._offset, self._mark = start + len(rest), rest[-MARK:]
        file.seek(self._offset if rest.endswith(b"\n") else start + len(rest))
