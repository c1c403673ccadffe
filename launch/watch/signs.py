"""Signs that something is wrong with a run, in its newest numbers; docs/watch.md says what to do about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from launch.report.axes import format_number, format_seconds
from launch.watch.progress import Progress
from launch.watch.records import Snapshot

LAST = 10
"""Steps that rates are means of."""
MAX_TRUNCATED = 0.1
MIN_KEPT = 0.25
RISES = 2.0
"""Trend of a mismatch from which it is told, where it is no rounding any more."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What is seen; `kind` is a row of the table of docs/watch.md."""

    kind: str
    text: str
    level: Literal["bad", "note"] = "note"


def find_signs(run: Snapshot, progress: Progress) -> list[Sign]:
    """Returns what is seen, the worst first."""
    rows = [row for _, row in run.recent]
    found = [
        *_of_state(run, progress),
        *_of_engines(run),
        *_of_mismatch(run),
        *_of_steps(rows),
        *_of_scores(rows),
    ]
    if run.bad_lines:
        found.append(
            Sign(
                kind="lines", text=f"metrics.jsonl: {run.bad_lines} lines could not be read and are left out."
            )
        )
    return sorted(found, key=lambda sign: sign.level != "bad")


def mismatch_limits(run: Snapshot) -> dict[str, float]:
    """Returns what happens at which mismatch, by the run's config; by default it warns at half of max_mismatch."""
    stops, warns = run.config.get("max_mismatch"), run.config.get("warn_mismatch")
    if not isinstance(stops, (int, float)) or stops <= 0:
        return {}
    return {"warns": float(warns) if isinstance(warns, (int, float)) else stops / 2, "stops": float(stops)}


def _of_state(run: Snapshot, progress: Progress) -> Iterator[Sign]:
    if progress.state == "stalled":
        yield Sign(
            kind="stalled", level="bad", text=f"Nothing was written for {format_seconds(progress.age)}."
        )
    if progress.state == "failed" and run.status is not None:
        yield Sign(kind="failed", level="bad", text=f"The run ended: {run.status.reason}")
    if progress.late is not None and run.status is not None:
        since = format_seconds(progress.late)
        yield Sign(
            kind="late", level="bad", text=f"Phase {run.status.phase or 'other'} takes {since} already."
        )


def _of_engines(run: Snapshot) -> Iterator[Sign]:
    engines = run.status.engines if run.status else ()
    lost = [str(each.number) for each in engines if each.state == "lost"]
    if lost:
        yield Sign(kind="engine lost", level="bad", text=f"Lost and not replaced: engine {', '.join(lost)}.")
    restarts = [row.get("engine_restarts", 0.0) for _, row in run.recent]
    if restarts and restarts[-1] > restarts[0]:
        count = int(restarts[-1] - restarts[0])
        yield Sign(
            kind="engine restarts", text=f"{count} engines were replaced in the last {len(restarts)} steps."
        )


def _of_mismatch(run: Snapshot) -> Iterator[Sign]:
    limits, row = mismatch_limits(run), run.recent[-1][1] if run.recent else {}
    value, trend = row.get("mismatch_mean"), row.get("mismatch_trend", 1.0)
    if value is None or not limits:
        return
    if value > limits["warns"]:
        places = [format_number(each) for each in (value, limits["warns"], limits["stops"])]
        text = f"Mismatch {places[0]} is above {places[1]}; at {places[2]} the run stops."
        yield Sign(kind="mismatch", level="bad", text=text)
    elif trend >= RISES and value > limits["warns"] / 10:
        text = f"Mismatch rises: the last steps have {format_number(trend)} times that of those before."
        yield Sign(kind="mismatch", text=text)


def _of_steps(rows: Sequence[dict[str, float]]) -> Iterator[Sign]:
    last = rows[-LAST:]
    skipped = sum(row.get("skipped_steps", 0.0) for row in rows)
    if skipped:
        text = f"{skipped:.0f} of the last {len(rows)} steps changed nothing: their gradient was not finite."
        yield Sign(kind="skipped steps", level="bad", text=text)
    truncated = [row["truncated"] for row in last if "truncated" in row]
    if truncated and fmean(truncated) >= MAX_TRUNCATED:
        text = f"{fmean(truncated):.0%} of responses are cut off at the length limit."
        yield Sign(kind="truncated", text=text)
    kept = [row["groups_kept"] / row["groups_total"] for row in last if row.get("groups_total")]
    if kept and fmean([row.get("groups_kept", 1.0) for row in last]) and fmean(kept) < MIN_KEPT:
        yield Sign(kind="signal", text=f"Only {fmean(kept):.0%} of the groups have a signal to learn from.")
    elif kept and not any(kept):
        text = f"Nothing was learned in the last {len(kept)} steps: no group had a signal."
        yield Sign(kind="signal", level="bad", text=text)


def _of_scores(rows: Sequence[dict[str, float]]) -> Iterator[Sign]:
    names = {
        "reward_timeouts": "ran out of time",
        "reward_errors": "failed",
        "judge_failures": "had no judge",
    }
    for key, what in names.items():
        count = sum(row.get(key, 0.0) for row in rows[-LAST:])
        if count:
            text = f"The score of {count:.0f} responses {what} in the last {len(rows[-LAST:])} steps."
            yield Sign(kind="scores", text=text)
    prompts = [row.get("skipped_prompts", 0.0) for row in rows]
    if prompts and prompts[-1] > prompts[0]:
        count = prompts[-1] - prompts[0]
        yield Sign(
            kind="prompts", text=f"{count:.0f} prompts could not be asked in the last {len(rows)} steps."
        )
