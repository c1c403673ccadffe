"""How far a run is, how fast, and whether it still goes on: by the age of its last write."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

from launch.watch.records import Snapshot

State = Literal["waiting", "starting", "running", "stalled", "stopped", "failed", "done"]

STATUS_AGE = 15.0
"""Seconds without a new status.json, which is written each second, after which the driver is taken for dead."""
START_AGE = 600.0
"""Seconds that a run without status.json may take to its first step."""
MIN_STEP_AGE = 120.0
SLOW_STEPS = 10
"""A step may take so many times as long as usual."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run's state at a moment."""

    state: State
    age: float  # seconds since the last write
    step_seconds: float | None = None  # usual, of the last steps
    eta: float | None = None  # seconds; None: not known, or not going on
    late: float | None = None  # seconds that the step now takes, where it is far longer than usual


def judge(run: Snapshot, now: float) -> Progress:
    """Returns the state of a run at the time `now`.

    Clocks may differ between machines: what was written in the future was written now.
    """
    age = max(0.0, now - run.written)
    seconds = _step_seconds(run)
    state = _find_state(run, age, seconds, now)
    left = max(0, run.steps - run.steps_done)
    eta = left * seconds if seconds is not None and run.steps and state == "running" else None
    return Progress(state=state, age=age, step_seconds=seconds, eta=eta, late=_find_late(run, seconds, state))


def _find_state(run: Snapshot, age: float, seconds: float | None, now: float) -> State:
    status = run.status
    if not run.written:
        return "waiting"
    if run.steps and run.steps_done >= run.steps:
        return "done"
    if status is not None and status.ended in ("failed", "stopped", "done"):
        return "failed" if status.ended == "failed" else "stopped"
    if status is not None:
        alive = age < STATUS_AGE or now - status.time < STATUS_AGE
        going: State = "running" if run.recent else "starting"
        return going if alive else "stalled"
    if not run.recent:
        return "starting" if age < START_AGE else "stalled"
    return "running" if age < max(MIN_STEP_AGE, SLOW_STEPS * (seconds or 0.0)) else "stalled"


def _step_seconds(run: Snapshot) -> float | None:
    """Returns the median of the last steps, as RL or SFT logs it."""
    seconds = [row.get("seconds_step", row.get("step_seconds")) for _, row in run.recent]
    known = [each for each in seconds if each is not None]
    return median(known) if known else None


def _find_late(run: Snapshot, seconds: float | None, state: State) -> float | None:
    if seconds is None or run.status is None or state != "running":
        return None
    phase = run.status.time - run.status.phase_since
    return phase if phase > max(MIN_STEP_AGE, SLOW_STEPS * seconds) else None
