"""Answers on disk: what was asked of a model about each sample of a shard, and what came of it.

    OUT/answers/000012.jsonl          all answers to shard 12 of the questions, checked, by sample and rollout
    OUT/answers/000012.jsonl.partial  the same while asking: one line is appended as each answer comes
    OUT/answers/000012.summary.json   counts of a shard, so that nobody has to read it for them

Files go by the shard's number in the index: the sources of a mixture may name their shards alike.

An answer is paid for: its line is written before anything else is done with it, and a later line of the same
sample and rollout takes the place of an earlier one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipeline.files import write_json
from data_pipeline.shards.index import ShardIndex

Key = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer to one sample, or why there is none."""

    id: str  # the sample's
    rollout: int
    source: str
    answer: str = ""  # the reference, so that the lines can be checked on their own
    teacher: str = ""  # the model that answered
    response: str | None = None  # None: no answer came
    finish_reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    attempts: int = 0
    hedged: bool = False
    perplexity: float | None = None  # where this was asked instead of an answer
    checker: str = ""  # whose verdict follows; "" before the check
    accuracy: float = 0.0
    format: float = 0.0
    extracted: str = ""
    decided_by: str = ""
    reason: str = ""  # why it is not kept: truncated, no_think, no_answer, wrong, ..., or why none came
    detail: str = ""  # of a failure, in words

    @property
    def key(self) -> Key:
        return self.id, self.rollout

    @property
    def is_failed(self) -> bool:
        """No answer came, and neither did what was asked instead."""
        return self.response is None and self.perplexity is None


@dataclass(kw_only=True)
class Yield:
    """What was asked about the samples of one source, and what came of it."""

    questions: int = 0
    asked: int = 0  # answers asked for
    answered: int = 0
    right: int = 0
    kept: int = 0  # right, whole and in form
    solved: int = 0  # questions with an answer that was kept
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0  # of requests, many of which ran at once
    hedged: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # why no answer came
    reasons: dict[str, int] = field(default_factory=dict)  # why an answer that came was not kept

    def add(self, answers: list[Answer]) -> None:
        """Count the answers to one question."""
        self.questions += 1
        self.solved += any(not answer.reason for answer in answers)
        for answer in answers:
            self.asked += 1
            self.answered += not answer.is_failed
            self.right += answer.accuracy > 0
            self.kept += not answer.reason
            self.tokens_in += answer.tokens_in
            self.tokens_out += answer.tokens_out
            self.seconds += answer.seconds
            self.hedged += answer.hedged
            if answer.reason:
                counts = self.failed if answer.is_failed else self.reasons
                counts[answer.reason] = counts.get(answer.reason, 0) + 1

    def merge(self, other: Yield) -> None:
        for name, value in asdict(other).items():
            mine = getattr(self, name)
            if isinstance(mine, dict):
                mine |= {reason: mine.get(reason, 0) + count for reason, count in value.items()}
            else:
                setattr(self, name, mine + value)


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """How far a shard was asked, and its yields by source."""

    sha256: str  # of the shard that was asked about
    k: int
    checker: str
    failed: int  # answers that did not come, or were not judged
    digest: str  # of the verdicts, and of the answers that were kept
    yields: dict[str, Yield]

    @classmethod
    def load(cls, out: str | Path, index: ShardIndex, number: int) -> ShardSummary | None:
        """The summary of the `number`-th shard where that was asked to its end, else None.

        Raises:
            ValueError: another shard was asked about.
        """
        path = _summary_path(answers_path(out, number))
        if not path.exists():
            return None
        fields = json.loads(path.read_text())
        if fields["sha256"] != (shard := index.shards[number]).sha256:
            raise ValueError(
                f"{path} is of other questions than {shard.file} holds now; choose another folder for the answers "
                "to these"
            )
        fields["yields"] = {source: Yield(**found) for source, found in fields["yields"].items()}
        return cls(**fields)


def answers_path(out: str | Path, number: int) -> Path:
    """Where the answers to the `number`-th shard lie."""
    return Path(out) / "answers" / f"{number:06d}.jsonl"


def read_answers(out: str | Path, index: ShardIndex, number: int) -> Iterator[Answer]:
    """The checked answers to the `number`-th shard, by sample and rollout.

    Raises:
        ValueError: the shard was not asked to its end, or another one was.
    """
    path = answers_path(out, number)
    if ShardSummary.load(out, index, number) is None or not path.exists():
        raise ValueError(f"{path} is not complete; give the command that writes it again, it continues")
    with path.open("rb") as lines:
        for line in lines:
            yield Answer(**json.loads(line))


def pass_rates(answers: Iterable[Answer]) -> dict[str, float]:
    """Share of right answers among those that came, for each sample that got one."""
    right: dict[str, list[bool]] = {}
    for answer in answers:
        if not answer.is_failed:
            right.setdefault(answer.id, []).append(answer.accuracy > 0)
    return {id: sum(found) / len(found) for id, found in right.items()}


class AnswerLog:
    """The answers to one shard while they are asked for; only their places in the file are held in memory.

    What a killed run left is continued: a line that was torn is dropped, so its answer is asked for again.
    """

    def __init__(self, path: Path) -> None:
        """Open, or open again, the log of the answers that will be at `path`.

        Raises:
            ValueError: another process is at it or just was, or a line is not one of ours.
        """
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("a+b")
        self.failed: set[Key] = set()
        self._places: dict[Key, int] = {}
        try:
            self._lock()
            _summary_path(path).unlink(missing_ok=True)
            self._reopen()
            self._load()
        except ValueError:
            self._file.close()
            raise

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, answer: Answer) -> None:
        self._note(answer, self._file.seek(0, os.SEEK_END))
        self._file.write(_line(answer))
        self._file.flush()  # now it outlives this process

    def read(self, key: Key) -> Answer:
        self._file.seek(self._places[key])
        return Answer(**json.loads(self._file.readline()))

    def keys(self, ids: Iterable[str]) -> list[Key]:
        """All keys in canonical order: by sample, then by rollout."""
        order = {id: number for number, id in enumerate(ids)}
        return sorted(self._places, key=lambda key: (order[key[0]], key[1]))

    def finish(self, answers: Iterable[list[Answer]], *, sha256: str, k: int, checker: str) -> ShardSummary:
        """Put the checked answers in the place of the log, sample by sample; from then on the shard is done."""
        yields: dict[str, Yield] = {}
        failed, digest = 0, hashlib.sha256()
        whole = self._path.with_name(self._path.name + ".whole")
        with whole.open("wb") as file:
            for group in answers:
                file.writelines(_line(answer) for answer in group)
                yields.setdefault(group[0].source, Yield()).add(group)
                failed += sum(answer.is_failed or answer.reason == "not_judged" for answer in group)
                digest.update(json.dumps([_decisive(answer) for answer in group]).encode())
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self._path)
        summary = ShardSummary(
            sha256=sha256, k=k, checker=checker, failed=failed, digest=digest.hexdigest(), yields=yields
        )
        write_json(_summary_path(self._path), asdict(summary))
        self._partial.unlink()
        self._file.close()
        return summary

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        """Who has the file locked, and finds it still at its place, is the only one to touch what lies here."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process is writing {self._partial}; wait for it, or end it") from error
        if not self._partial.exists() or not os.path.samestat(
            os.fstat(self._file.fileno()), self._partial.stat()
        ):
            raise ValueError(f"another process just finished {self._path}; give the command again")

    def _reopen(self) -> None:
        """A complete file holds all answers; more are asked for now, so they go back into the log."""
        if not self._path.exists():
            return
        self._file.truncate(0)  # what an earlier copy, or the end of a killed run, left
        with self._path.open("rb") as whole:
            shutil.copyfileobj(whole, self._file)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.unlink()

    def _load(self) -> None:
        self._file.seek(0)
        place = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self._file.truncate(place)  # torn by a kill
                break
            try:
                self._note(Answer(**json.loads(line)), place)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self._partial}:{number} is no answer ({error}); delete that line"
                ) from error
            place += len(line)

    def _note(self, answer: Answer, place: int) -> None:
        self._places[answer.key] = place
        if answer.is_failed:
            self.failed.add(answer.key)
        else:
            self.failed.discard(answer.key)


def _summary_path(path: Path) -> Path:
    return path.with_suffix(".summary.json")


def _decisive(answer: Answer) -> list[object]:
    """What scores and samples are made of."""
    kept = None if answer.reason else answer.response
    return [*answer.key, answer.is_failed, answer.accuracy, answer.decided_by, kept]


def _line(answer: Answer) -> bytes:
    return json.dumps(asdict(answer), ensure_ascii=True).encode() + b"\n"
