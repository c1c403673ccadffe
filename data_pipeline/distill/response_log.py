"""The append-only log of the responses to one shard, written while its questions are asked.

A response costs money, so its line is written before it is checked. A later line of the same question
and rollout replaces an earlier one. When all responses are there and checked, a sorted file takes the log's place.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from data_pipeline.distill.responses import ResponseStats, ShardSummary, TeacherResponse, summary_path
from data_pipeline.files import atomic_writer, to_json, write_json

Key = tuple[str, int]


class ResponseLog:
    """The responses to one shard while they are asked for; memory holds only their offsets in the file.

    Continues what a killed run left: a torn line at the end is dropped, so its response is asked for again.
    """

    def __init__(self, path: Path) -> None:
        """Opens, or opens again, the log of the responses that will be at `path`.

        Raises:
            ValueError: another process writes it or just did, or a line is not a response.
        """
        self._path, self._log = path, path.with_suffix(".log")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._log.open("a+b")
        self.failed: set[Key] = set()
        self._offsets: dict[Key, int] = {}
        try:
            self._lock()
            summary_path(path).unlink(missing_ok=True)
            self._reopen()
            self._load()
        except ValueError:
            self._file.close()
            raise

    def __contains__(self, key: Key) -> bool:
        return key in self._offsets

    def add(self, response: TeacherResponse) -> None:
        self._note(response, self._file.seek(0, os.SEEK_END))
        self._file.write(response.to_json())
        self._file.flush()  # now it outlives this process

    def read(self, key: Key) -> TeacherResponse:
        self._file.seek(self._offsets[key])
        return TeacherResponse.from_json(self._file.readline())

    def keys(self, ids: Iterable[str]) -> list[Key]:
        """Returns all keys, ordered by question as in `ids`, then by rollout."""
        order = {id: number for number, id in enumerate(ids)}
        return sorted(self._offsets, key=lambda key: (order[key[0]], key[1]))

    def finish(
        self,
        groups: Iterable[Sequence[TeacherResponse]],
        *,
        sha256: str,
        k: int,
        checker: str,
        questions: str = "",
    ) -> ShardSummary:
        """Replaces the log by the checked responses, question by question; then the shard is complete."""
        stats: dict[str, ResponseStats] = {}
        failed, digest = 0, hashlib.sha256()
        with atomic_writer(self._path) as file:
            for group in groups:
                file.writelines(response.to_json() for response in group)
                stats.setdefault(group[0].source, ResponseStats()).add(group)
                failed += sum(response.is_failed or response.reason == "not_judged" for response in group)
                digest.update(to_json([response.decisive for response in group]).encode())
        summary = ShardSummary(
            sha256=sha256,
            k=k,
            checker=checker,
            questions=questions,
            failed=failed,
            digest=digest.hexdigest(),
            stats=stats,
        )
        write_json(summary_path(self._path), asdict(summary))
        self._log.unlink()
        self._file.close()
        return summary

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        """Makes this process the only one to change the shard's files: it locks the log, which must still be there."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process is writing {self._log}; wait for it, or end it") from error
        if not self._log.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self._log.stat()):
            raise ValueError(f"another process just finished {self._path}; run the command again")

    def _reopen(self) -> None:
        """Moves the responses of a complete shard back into the log, because more are asked for now."""
        if not self._path.exists():
            return
        self._file.truncate(0)  # left by a run that was killed while it copied or finished
        with self._path.open("rb") as complete:
            shutil.copyfileobj(complete, self._file)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.unlink()

    def _load(self) -> None:
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self._file.truncate(offset)  # torn by a kill
                break
            try:
                self._note(TeacherResponse.from_json(line), offset)
            except ValueError as error:
                raise ValueError(f"{self._log}:{number}: {error}; delete that line") from error
            offset += len(line)

    def _note(self, response: TeacherResponse, offset: int) -> None:
        self._offsets[response.key] = offset
        if response.is_failed:
            self.failed.add(response.key)
        else:
            self.failed.discard(response.key)
