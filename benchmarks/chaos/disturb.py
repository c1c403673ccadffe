"""Runs the command of a run to its end while its processes are killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.parts import (
    Driver,
    Judge,
    collect_ended,
    describe,
    end_all,
    is_alive,
    list_children,
    send,
    wait_for_end,
)
from benchmarks.chaos.plan import NEVER, Strike
from data_pipeline.files import read_json
from megatron_omr.train.metrics import read_json_lines

LOOK_SECONDS, COLLECT_SECONDS = 0.1, 2.0
"""Between two looks at the run, and at orphans that have ended."""
PATIENCE = 300.0
"""Most seconds without a step or an end of the driver."""
SETTLE_SECONDS = 15.0
"""In which the processes of a driver that ended by itself end. Those of a killed one are gone at its next start."""
STOPPED_FOR = 3.0
"""Seconds that a driver has been stopped for good when its command is started a second time."""


@dataclass(kw_only=True)
class Done:
    """A strike that was made, and what came of it."""

    strike: Strike
    at: float  # seconds since the start
    pid: int
    rows: int  # steps that were logged
    recovered: float | None = None  # seconds until the next step was logged


@dataclass(kw_only=True)
class Report:
    """What happened to a run."""

    done: list[Done] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)  # how the driver ended before it was done
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    starts: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Disturber:
    """Makes the strikes of a plan on one run."""

    def __init__(self, driver: Driver, judge: Judge | None, run: Path, strikes: Sequence[Strike]) -> None:
        """Takes a driver that was not started; what it starts must find no other parent than this process."""
        self._driver, self._judge, self._run = driver, judge, run
        self._left = list(strikes)
        self._before = list_children(os.getpid())  # not of the run; a test's fork server, say
        self.report = Report()
        self._later: list[tuple[float, Callable[[], object]]] = []  # what is to be done, and when
        self._began = self._ready = self._moved = time.monotonic()
        self._rows, self._collects = 0, 0.0
        self._earlier: list[psutil.Process] = []  # of a driver that was killed, when its next start began

    def run(self) -> Report:
        """Returns what happened once the run is done; everything of it has ended.

        Raises:
            RuntimeError: nothing moved for PATIENCE seconds, or the driver does not start.
        """
        try:
            self._driver.start()
            while (code := self._driver.process.poll()) != 0:
                if code is not None:
                    self._start_again(code)
                self._look()
                time.sleep(LOOK_SECONDS)
            self._check_left("the end", self._others, SETTLE_SECONDS)
        finally:
            self._driver.process.kill()
            self._driver.process.wait()
            for _, act in self._later:
                act()
            end_all(self._others())
            self.report.seconds = round(time.monotonic() - self._began, 1)
            self.report.starts = self._driver.starts
        if self._left:
            self.report.problems.append(f"{len(self._left)} strikes were left when the run was done")
        return self.report

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._collects:
            collect_ended(self._kept)
            self._collects = now + COLLECT_SECONDS
        due = [act for when, act in self._later if when <= now]
        self._later = [(when, act) for when, act in self._later if when > now]
        for act in due:
            act()
        self._count_rows(now)
        if now - self._moved > PATIENCE:
            left = "\n".join(map(describe, list_children(self._driver.process.pid)))
            raise RuntimeError(f"nothing moved for {PATIENCE:g} s; processes:\n{left}")
        if self._left and self._rows >= self._left[0].step and now >= self._ready + self._left[0].wait:
            self._strike()

    def _count_rows(self, now: float) -> None:
        path = self._run / "metrics.jsonl"
        rows = len(read_json_lines(path)) if path.exists() else 0
        if rows > self._rows:
            earlier, self._earlier = self._earlier, []
            self._check_left("a start after a kill", lambda: [p for p in earlier if is_alive(p)], 0.0)
            for done in self.report.done:
                if done.recovered is None:
                    done.recovered = round(now - self._began - done.at, 1)
        if rows != self._rows:
            self._moved = now
        if self._left and self._rows < self._left[0].step <= rows:
            self._ready = now
        self._rows = rows

    def _strike(self) -> None:
        """Makes the first strike that is due for which there is a process."""
        parts = self._driver.find_parts()
        if not self._holds_run():  # a start beside it would not be refused
            del parts["driver"]
        if self._judge is not None:
            parts["judge"] = [psutil.Process(self._judge.process.pid)]
        due = (strike for strike in self._left if strike.step <= self._rows)
        strike = next((strike for strike in due if strike.kind in parts), None)
        if strike is None:
            return
        victim = parts[strike.kind][len(self.report.done) % len(parts[strike.kind])]
        if not send(victim, signal.Signals[strike.signal]):
            return
        self._left.remove(strike)
        self._ready = self._moved = now = time.monotonic()
        self.report.done.append(
            Done(strike=strike, at=round(now - self._began, 1), pid=victim.pid, rows=self._rows)
        )
        print(f"{now - self._began:7.1f} s  step {self._rows:3d}  {strike.signal} {strike.kind}", flush=True)
        if self._judge and strike.kind == "judge" and strike.signal == "SIGKILL":
            self._later.append((now + strike.seconds, self._judge.restart))
        elif strike.signal == "SIGSTOP" and strike.seconds != NEVER:
            self._later.append((now + strike.seconds, lambda: send(victim, signal.SIGCONT)))
        elif strike.signal == "SIGSTOP" and strike.kind == "driver":
            self._later.append((now + STOPPED_FOR, lambda: self._start_beside(victim)))

    def _holds_run(self) -> bool:
        """Returns whether the driver has come so far that the run is its own."""
        try:
            return read_json(self._run / "lock")["pid"] == self._driver.process.pid
        except (OSError, ValueError):  # there is none, or it is being written
            return False

    def _start_beside(self, stopped: psutil.Process) -> None:
        """Starts the command of a driver that is stopped a second time, which must say so; then kills the first."""
        if not is_alive(stopped):
            return
        second = subprocess.run(
            self._driver.command, env=self._driver.environment, capture_output=True, text=True, timeout=120
        )
        if second.returncode == 0 or str(stopped.pid) not in second.stderr:
            words = second.stderr.strip()[-300:]
            self.report.problems.append(f"a second start beside a stopped driver said {words!r}")
        send(stopped, signal.SIGKILL)

    def _start_again(self, code: int) -> None:
        """Starts a driver in the place of one that has ended with a code other than 0."""
        words = self._driver.last_words()
        self.report.ends.append(f"exit code {code}: {words if code > 0 else ''}")
        print(f"          the driver ended with {code}: {words if code > 0 else 'killed'}", flush=True)
        if len(self.report.ends) > 2 * len(self.report.done) + 2:
            raise RuntimeError(f"the driver does not start: {words}")
        if code > 0:
            self._check_left(f"an end with code {code}", self._others, SETTLE_SECONDS)
        self._earlier = self._others()
        self._driver.start()
        self._moved = time.monotonic()

    def _check_left(self, when: str, find: Callable[[], list[psutil.Process]], seconds: float) -> None:
        def look() -> list[psutil.Process]:
            collect_ended(self._kept)
            return find()

        left = wait_for_end(look, seconds)
        self.report.problems += [f"left after {when}: {describe(process)}" for process in left]

    @property
    def _ours(self) -> set[int]:
        """The children that this process started itself."""
        return {self._driver.process.pid} | ({self._judge.process.pid} if self._judge else set())

    @property
    def _kept(self) -> set[int]:
        """The children whose exit codes others take."""
        return self._ours | {process.pid for process in self._before}

    def _others(self) -> list[psutil.Process]:
        """Returns the processes that came of the run, without the driver and the judge."""
        before = {child for process in self._before for child in (process, *list_children(process.pid))}
        return [
            process
            for process in list_children(os.getpid())
            if process.pid not in self._ours and process not in before
        ]
