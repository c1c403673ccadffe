"""The demo's stages: what is finished is not done again, and the summary is worked out from what is on disk."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from data_pipeline.verify.record import ScoredResponse
from launch.cli import main
from launch.config import DemoConfig
from launch.stages import Demo
from launch.summary import print_summary, write_summary


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    ran: list[str] = []

    def work(name: str) -> None:
        ran.append(name)
        (tmp_path / name).write_text("")

    for _ in range(2):  # the second demo is the first one, started again
        demo = Demo(DemoConfig(out=str(tmp_path), seed=1))
        demo.stage("a", "a", lambda: work("a"))
        demo.stage("b", "b", lambda: work("b"))
    assert ran == ["a", "b"]
    assert set(demo.seconds) == {"a", "b"}


def test_an_interrupted_attempt_counts_and_one_that_is_done_anew_does_not(tmp_path: Path) -> None:
    demo = Demo(DemoConfig(out=str(tmp_path), seed=1))

    def stop() -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.stage("a", "a", stop)
    again = Demo(DemoConfig(out=str(tmp_path), seed=1))
    again.stage("a", "a", lambda: time.sleep(0.1))
    assert 0.3 <= again.seconds["a"] < 0.6
    again.stage("a", "a", lambda: time.sleep(0.1))  # its result was deleted
    assert 0.1 <= again.seconds["a"] < 0.3


def test_another_seed_needs_another_folder(tmp_path: Path) -> None:
    Demo(DemoConfig(out=str(tmp_path), seed=1))
    with pytest.raises(ValueError, match="seed=1, not 2"):
        Demo(DemoConfig(out=str(tmp_path), seed=2))


def test_interrupted_data_goes_on(tmp_path: Path) -> None:
    command = ["data", "digits", str(tmp_path), "--train", "6", "--validation", "3", "--test", "4"]
    assert main(command) == 0
    first = (tmp_path / "train" / "index.json").read_bytes()
    (tmp_path / "test" / "index.json").unlink()  # as after a kill before the last split was complete
    for left in (tmp_path / "test").iterdir():
        left.unlink()
    assert main(command) == 0
    assert (tmp_path / "train" / "index.json").read_bytes() == first
    assert (tmp_path / "test" / "index.json").exists()


def test_the_summary_says_what_the_answers_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = {"sft": range(40), "rl": range(60)}
    for stage, hits in right.items():
        folder = tmp_path / "eval" / stage
        folder.mkdir(parents=True)
        records = [ScoredResponse(id=str(i), accuracy=float(i in hits)) for i in range(100)]
        (folder / "responses.jsonl").write_bytes(b"".join(record.to_json() for record in records))
        (folder / "summary.json").write_text(json.dumps({"accuracy": len(hits) / 100, "ci95": [0.3, 0.7]}))
    demo = Demo(DemoConfig(out=str(tmp_path), seed=1))
    write_summary(demo)
    print_summary(demo)
    summary = json.loads((tmp_path / "summary.json").read_text())
    low, high = summary["difference"]["ci95"]
    assert summary["difference"]["value"] == pytest.approx(0.2) and 0.1 < low < 0.2 < high < 0.3
    assert summary["versions"]["torch"]
    assert "+20.0 points" in capsys.readouterr().out
