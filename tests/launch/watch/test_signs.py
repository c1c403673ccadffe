"""Whether a run goes on, how long it will take, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from launch.watch.progress import MIN_STEP_AGE, STATUS_AGE, judge
from launch.watch.records import EngineStatus, RunStatus, Snapshot
from launch.watch.signs import find_signs

NOW = 1e9


def make_run(
    *rows: dict[str, float], age: float = 1.0, status: RunStatus | None = None, **config: object
) -> Snapshot:
    """Returns a run of 100 steps, the last of which ended `age` seconds ago."""
    recent = tuple(enumerate({"reward": 0.5, "seconds_step": 4.0} | row for row in rows))
    return Snapshot(
        name="run", config={"steps": 100} | config, recent=recent, written=NOW - age, status=status
    )


def kinds(run: Snapshot) -> list[str]:
    return [sign.kind for sign in find_signs(run, judge(run, NOW))]


def test_time_to_go_is_that_of_the_usual_step() -> None:
    progress = judge(make_run({}, {"seconds_step": 90.0}, {}, {}), NOW)
    assert (progress.state, progress.step_seconds, progress.eta) == ("running", 4.0, 96 * 4.0)
    sft = judge(make_run({}, {}), NOW)
    assert (
        judge(replace(make_run({}, {}), recent=((0, {"loss": 1.0, "step_seconds": 2.0}),)), NOW).eta
        == 99 * 2.0
    )
    assert sft.eta is not None and judge(replace(make_run({}), config={}), NOW).eta is None, (
        "steps are not known"
    )


@pytest.mark.parametrize(
    ("run", "state"),
    [
        (Snapshot(name="run"), "waiting"),
        (make_run(), "starting"),
        (make_run(age=3600), "stalled"),
        (make_run({}, age=MIN_STEP_AGE - 1), "running"),
        (make_run({}, age=MIN_STEP_AGE + 1), "stalled"),
        (make_run({"seconds_step": 600.0}, age=5000), "running"),
        (make_run({}, age=-50), "running"),  # by the clock of another machine
        (make_run(*[{}] * 100, age=9e5), "done"),
        (make_run(status=RunStatus(time=NOW)), "starting"),
        (make_run({}, status=RunStatus(time=NOW, phase_since=NOW)), "running"),
        (make_run({}, age=STATUS_AGE + 1, status=RunStatus(time=NOW - STATUS_AGE - 1)), "stalled"),
        (make_run({}, status=RunStatus(time=NOW, ended="stopped")), "stopped"),
        (make_run({}, status=RunStatus(time=NOW, ended="failed", reason="RankError: x")), "failed"),
    ],
)
def test_state_follows_from_what_was_written_last(run: Snapshot, state: str) -> None:
    assert judge(run, NOW).state == state


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (make_run({}, age=3600), "stalled"),
        (make_run({}, status=RunStatus(time=NOW, ended="failed", reason="RankError: x")), "failed"),
        (make_run({}, status=RunStatus(time=NOW, phase_since=NOW - 121)), "late"),
        (
            make_run(status=RunStatus(time=NOW, engines=(EngineStatus(number=1, state="lost"),))),
            "engine lost",
        ),
        (make_run({"engine_restarts": 1}, {"engine_restarts": 3}), "engine restarts"),
        (make_run({"mismatch_mean": 0.06}, max_mismatch=0.1), "mismatch"),
        (make_run({"mismatch_mean": 0.02}, max_mismatch=0.1, warn_mismatch=0.01), "mismatch"),
        (make_run({"mismatch_mean": 0.02, "mismatch_trend": 2.5}, max_mismatch=0.1), "mismatch"),
        (make_run({"skipped_steps": 1}, {}), "skipped steps"),
        (make_run({"truncated": 0.05}, {"truncated": 0.2}), "truncated"),
        (make_run({"groups_kept": 3, "groups_total": 32}), "signal"),
        (make_run({"groups_kept": 0, "groups_total": 32}), "signal"),
        (make_run({"judge_failures": 2}), "scores"),
        (make_run({"skipped_prompts": 0}, {"skipped_prompts": 4}), "prompts"),
        (replace(make_run({}), bad_lines=2), "lines"),
    ],
)
def test_each_sign_is_seen_and_explained(run: Snapshot, kind: str) -> None:
    assert kinds(run) == [kind]
    page = Path(__file__).parents[3] / "docs/watch.md"
    assert re.search(rf"^\| \*\*{kind}\*\*", page.read_text(), re.MULTILINE), "the table has a row for it"


def test_sound_run_has_no_sign_and_the_worst_comes_first() -> None:
    sound = {
        "mismatch_mean": 1e-6,
        "mismatch_trend": 3.0,
        "truncated": 0.0,
        "groups_kept": 20,
        "groups_total": 32,
        "engine_restarts": 2,
    }
    assert kinds(make_run(sound, sound, max_mismatch=0.1)) == []
    assert kinds(make_run({"truncated": 0.5, "mismatch_mean": 1.0}, max_mismatch=0.1)) == [
        "mismatch",
        "truncated",
    ]
