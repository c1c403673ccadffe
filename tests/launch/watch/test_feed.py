"""A run's folder, followed from before it is there until after it is gone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from launch.report.load import load_metrics
from launch.watch.feed import RunFeed
from launch.watch.progress import judge
from launch.watch.records import Snapshot
from tests.helpers.live_run import LiveRun
from tests.helpers.report_run import sft_row, write_json, write_lines


def look(feed: RunFeed) -> Snapshot:
    feed.poll()
    return feed.snapshot()


def test_run_is_followed_from_nothing_over_a_resume_to_its_end(tmp_path: Path) -> None:
    live = LiveRun(tmp_path / "run", steps=9)
    feed = RunFeed(live.folder, "run")
    assert judge(look(feed), time.time()).state == "waiting"
    live.start()
    live.report(-1)
    found = look(feed)
    assert found.is_rl and found.steps == 9 and judge(found, time.time()).state == "starting"
    for step in range(6):
        live.step(step, reward=step / 10)
        live.report(step + 1)
    found = look(feed)
    assert found.steps_done == 6 and judge(found, time.time()).state == "running"
    assert found.metrics and found.metrics.points("reward")[-1] == (5, 0.5)
    assert [(placed.group.step, placed.place) for placed in found.groups] == [
        (s, p) for s in (3, 4, 5) for p in (0, 1)
    ]
    newest = found.groups[-1].group.ref
    assert (
        len(feed.images(newest) or ()) == 1 and feed.find_ref(5, 1) == newest and feed.find_ref(5, 2) is None
    )

    live.start(first_step=3)  # killed after a checkpoint of three steps, and resumed
    found = look(feed)
    assert found.steps_done == 3 and [step for step, _ in found.recent] == [0, 1, 2]
    assert found.groups[-1].group.step == 2 and found.groups[-1].place == 1
    for step in range(3, 9):
        live.step(step, reward=-1.0)
    found = look(feed)
    assert found.metrics == load_metrics(live.folder, []), "as the report reads it"
    assert judge(found, time.time()).state == "done"

    shutil.rmtree(live.folder)
    found = look(feed)
    assert found.metrics is None and not found.groups and judge(found, time.time()).state == "waiting"


def test_step_that_comes_twice_in_one_file_counts_as_its_last(tmp_path: Path) -> None:
    feed = RunFeed(tmp_path, "run")
    write_lines(tmp_path / "metrics.jsonl", [sft_row(0), sft_row(1), "no metrics"])
    assert look(feed).bad_lines == 1
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 0, "loss": 7.0}\n{"step": 1, "los')
    found = look(feed)
    assert found.metrics is not None and found.metrics.points("loss")[0] == (0, 7.0)
    assert found.steps_done == 2 and not found.is_rl and found.bad_lines == 1


def test_files_of_other_versions_are_passed_over(tmp_path: Path) -> None:
    write_lines(tmp_path / "rollouts.jsonl", [{"step": 1}, ["no group"]])
    write_json(tmp_path / "status.json", {"engines": 3})
    (tmp_path / "config.json").write_text("[1, 2]")
    found = look(RunFeed(tmp_path, "run"))
    assert found.groups == () and found.status is None and found.config == {}
