"""Verdicts of a judge, in memory and in an append-only file of JSON lines, so that none is asked for twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from data_pipeline.files import parse_json, to_json


class VerdictCache:
    """Clear verdicts by key(); a line of the file has key, equivalent, and for a reader answer and candidate.

    A torn line at the end, which a kill left, is dropped.
    """

    def __init__(self, path: Path | None) -> None:
        """Reads the verdicts that `path` holds, and appends new ones there; None keeps them in memory alone.

        Raises:
            ValueError: a line of the file is no verdict.
        """
        self._found: dict[bytes, bool] = {}
        self._file: BinaryIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            try:
                self._load(path, self._file)
            except ValueError:
                self._file.close()
                raise

    def __len__(self) -> int:
        return len(self._found)

    @staticmethod
    def key(*decisive: str) -> str:
        """Returns the key of all texts that decide a verdict: question, answer, candidate, model and instructions."""
        return hashlib.sha256(to_json(decisive).encode()).hexdigest()

    def get(self, key: str) -> bool | None:
        return self._found.get(bytes.fromhex(key))

    def add(self, key: str, answer: str, candidate: str, is_equal: bool) -> None:
        """Keeps a verdict; the line outlives this process."""
        self._found[bytes.fromhex(key)] = is_equal
        if self._file:
            row = {"key": key, "equivalent": is_equal, "answer": answer, "candidate": candidate}
            self._file.write(to_json(row).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _load(self, path: Path, file: BinaryIO) -> None:
        file.seek(0)
        offset = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                file.truncate(offset)
                break
            try:
                row = parse_json(line)
                key, is_equal = bytes.fromhex(row["key"]), row["equivalent"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}:{number}: no verdict ({error!r}); delete that line") from error
            self._found[key] = bool(is_equal)
            offset += len(line)
