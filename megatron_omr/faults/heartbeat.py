"""Signs of life of a run's ranks, and a watch that names the rank that has stopped or that the others wait for.

RUN/heartbeats/rank-00003.json    what rank 3 does, written anew every few seconds by a thread of it

The file is overwritten in place: readers on other machines see that at once, where a new file may stay hidden behind a
cache of the folder, and a full disk does not prevent it. A reader may see half of it, and then looks again. Only the
reader's own clock and the number of the sign count, not the times of files, which other machines wrote. Rank 0 watches
all; the others watch rank 0, whose sign also holds what it has found. So the files that are read grow as the ranks, not
as their square. Imports no torch: the driver of the RL loop watches its trainers from outside.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from data_pipeline.failures import Failure, describe_failure
from data_pipeline.files import parse_json, to_json
from megatron_omr.config import FaultConfig

_FILE_BYTES = 16_384
_MOST_FRAMES = 64
_LEFT_OUT = "torch/nn/modules/module.py"
"""Two frames of each module that calls another."""
_MOST_NAMED = 3
"""Ranks whose stacks a report shows."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The activity of a rank."""

    name: str
    number: int = 0
    began: float  # by the rank's own clock
    is_limited: bool = False  # it may not take longer than fault.timeout


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One sign of life."""

    rank: int
    host: str
    pid: int
    number: int
    phase: str
    phase_number: int
    seconds: float  # that the phase has lasted
    is_limited: bool
    stack: Sequence[str]  # of the main thread, innermost first
    report: str  # what this rank's watch has found
    failure: dict[str, Any] | None  # the fields of a Failure, of a rank that has raised

    @property
    def place(self) -> tuple[str, ...]:
        return tuple(self.stack)

    @property
    def is_in_collective(self) -> bool:
        return any("torch/distributed/" in frame for frame in self.stack)

    def describe(self, what: str) -> str:
        """Returns the lines of a report about this rank."""
        who = f"rank {self.rank} on host {self.host} (process {self.pid})"
        return "\n    ".join([f"{who} {what}; in:", *self.stack])


class Heartbeat:
    """The signs of life of this rank until it is closed; of one that failed, the last stays on the disk."""

    def __init__(self, run: Path, config: FaultConfig, *, rank: int, watch: Watch | None = None) -> None:
        """Writes the first sign, and starts the thread. Of the calling thread the stack is written.

        Args:
            watch: what it finds ends this process, with code 1; None leaves that to others.

        Raises:
            OSError: the file cannot be written.
        """
        self._path, self._config, self._watch = _place(run, rank), config, watch
        self._rank, self._host, self._main = rank, socket.gethostname(), threading.get_ident()
        self._number, self._report = 0, ""
        self._failure: Failure | None = None
        self._phase = Phase(name="start", began=time.monotonic())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(b" " * _FILE_BYTES)
        self._write()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self.enter(f"failed with {type(error).__name__}: {error}"[:500])
            self._failure = describe_failure(f"rank {self._rank}", error)
        self._ended.set()
        self._thread.join(self._config.beat)
        with suppress(OSError):
            if error is not None:
                self._write()
                return
            self._path.unlink()
            self._path.parent.rmdir()  # the last one can

    def enter(self, phase: str, *, is_limited: bool = False) -> None:
        """Says what this rank does from now on, and whether it may not take longer than fault.timeout."""
        number = self._phase.number + 1
        self._phase = Phase(name=phase, number=number, began=time.monotonic(), is_limited=is_limited)

    @contextmanager
    def during(self, phase: str, *, after: str = "idle") -> Iterator[None]:
        """Names a limited phase, and the one that follows it."""
        self.enter(phase, is_limited=True)
        yield
        self.enter(after)

    def _run(self) -> None:
        while not self._ended.wait(self._config.beat):
            with suppress(OSError):
                self._write()
            if self._watch is not None and (report := self._watch.look()):
                self._end(report)

    def _write(self) -> None:
        self._number += 1
        phase = self._phase
        beat = Beat(
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            number=self._number,
            phase=phase.name,
            phase_number=phase.number,
            seconds=round(time.monotonic() - phase.began, 1),
            is_limited=phase.is_limited,
            stack=list(islice(_frames(sys._current_frames().get(self._main)), _MOST_FRAMES)),
            report=self._report,
            failure=self._failure and asdict(self._failure),
        )
        data = to_json(asdict(beat)).encode()
        with self._path.open("r+b") as file:
            file.write(data.ljust(_FILE_BYTES))
            file.truncate()

    def _end(self, report: str) -> NoReturn:
        """Prints what was found, and ends this process; rank 0 a little later, when the others have read it."""
        self._report = report
        os.write(2, f"omr: error: {report}\n".encode())  # sys.stderr may be held by the thread that hangs
        with suppress(OSError):
            self._write()
        time.sleep(2 * self._config.beat if self._rank == 0 else 0)
        os._exit(1)


@dataclass(kw_only=True)
class _Seen:
    """The last sign of a rank that a watch has read."""

    beat: Beat
    age: float = 0.0  # seconds in which the watch looked and saw nothing new
    is_new: bool = False  # a second sign was seen: the file is not of an earlier process


class Watch:
    """Looks at the signs of ranks. Those whose file is missing have not begun, or have ended well."""

    def __init__(
        self, run: Path, config: FaultConfig, *, rank: int, world_size: int, begins: bool = False
    ) -> None:
        """
        Args:
            rank: who watches.
            begins: it watches from when the ranks are started, and names those that do not begin in fault.timeout.
        """
        self._run, self._config, self._is_first = run, config, rank == 0
        self._absent = set(range(world_size) if begins else ())
        self._waited = 0.0  # seconds in which it looked
        self._ranks = range(world_size) if rank == 0 else range(1)
        self._seen: dict[int, _Seen] = {}
        self._looked = time.monotonic()

    def look(self) -> str:
        """Returns what is wrong, or "". Call it often: it looks at the files once in `fault.beat` seconds."""
        passed = time.monotonic() - self._looked
        if passed < 0.9 * self._config.beat:
            return ""
        self._looked += passed
        # not the whole time: a watch that was itself stopped, or waited for a disk, has not looked
        passed = min(passed, 2 * self._config.beat)
        self._waited += passed
        for rank in self._ranks:
            self._update(rank, passed)
        self._absent -= self._seen.keys()
        seen = self._seen.values()
        told = (one.beat.report for one in seen if one.is_new and not self._is_first)
        return (
            next(filter(None, told), "") or self._find_silent() or self._find_stuck() or self._find_absent()
        )

    def _update(self, rank: int, passed: float) -> None:
        before = self._seen.get(rank)
        try:
            beat = _read(self._run, rank)
        except FileNotFoundError:
            self._seen.pop(rank, None)
            return
        if before is None:
            self._seen |= {rank: _Seen(beat=beat)} if beat is not None else {}
        elif beat is None or (beat.pid, beat.number) == (before.beat.pid, before.beat.number):
            before.age += passed
        else:
            self._seen[rank] = _Seen(beat=beat, is_new=True)

    def _find_silent(self) -> str:
        silent = [one for one in self._seen.values() if one.age > self._config.silence]
        return _report(
            one.beat.describe(
                f"has given no sign of life for {one.age:.0f} s (fault.silence={self._config.silence:g}); "
                f"last phase: {one.beat.phase}"
            )
            for one in silent
        )

    def _find_stuck(self) -> str:
        """Names first who holds up the others: a rank in an earlier phase, or in no collective, or in a rare place."""
        beats = [one.beat for one in self._seen.values() if one.is_new]
        if not self._is_first or not any(b.is_limited and b.seconds > self._config.timeout for b in beats):
            return ""
        places = Counter(beat.place for beat in beats)
        beats.sort(key=lambda beat: (beat.phase_number, beat.is_in_collective, places[beat.place], beat.rank))
        return _report(
            beat.describe(
                f"has been in {beat.phase} for {beat.seconds:.0f} s (fault.timeout={self._config.timeout:g})"
            )
            for beat in beats
        )

    def _find_absent(self) -> str:
        if not self._absent or self._waited <= self._config.timeout:
            return ""
        names = ", ".join(f"rank {rank}" for rank in sorted(self._absent)[:_MOST_NAMED])
        return f"{names} of {len(self._ranks)} has not begun within fault.timeout={self._config.timeout:g} s"


def clear_beats(run: Path) -> None:
    """Removes the signs of an earlier start of this run; for a watch that begins before its ranks."""
    shutil.rmtree(run / "heartbeats", ignore_errors=True)


def read_failures(run: Path, world_size: int) -> list[Failure]:
    """Returns how ranks have failed, as far as they have said so."""
    found = []
    for rank in range(world_size):
        with suppress(FileNotFoundError):
            beat = _read(run, rank)
            found += [Failure(**beat.failure)] if beat is not None and beat.failure else []
    return found


def _read(run: Path, rank: int) -> Beat | None:
    """Returns the last sign of a rank; None where it is half written, or of another version."""
    try:
        return Beat(**parse_json(_place(run, rank).read_bytes()))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError):
        return None


def _place(run: Path, rank: int) -> Path:
    return run / "heartbeats" / f"rank-{rank:05d}.json"


def _report(descriptions: Iterable[str]) -> str:
    found = list(descriptions)
    more = [f"and {len(found) - _MOST_NAMED} more ranks"] if len(found) > _MOST_NAMED else []
    return "\n".join([*found[:_MOST_NAMED], *more])


def _frames(frame: FrameType | None) -> Iterator[str]:
    """Yields file, line and function of a frame and its callers."""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.endswith(_LEFT_OUT):
            yield f"{'/'.join(Path(file).parts[-3:])}:{frame.f_lineno} {frame.f_code.co_qualname}"[:120]
        frame = frame.f_back
