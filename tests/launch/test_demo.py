"""The demo: finished stages are not repeated, the summary comes from files, and a tiny demo runs for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.files import read_json, write_json
from data_pipeline.verify.record import ScoredResponse, read_responses
from launch.cli import main
from launch.config import DemoConfig, DigitsConfig
from launch.demo import run_demo
from launch.stages import TIMES, Demo
from launch.summary import print_summary, write_summary


def test_finished_stage_is_not_repeated(tmp_path: Path) -> None:
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


def test_seconds_of_interrupted_attempts_are_added_and_those_of_lost_results_are_not(tmp_path: Path) -> None:
    demo = Demo(DemoConfig(out=str(tmp_path), seed=1))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.stage("a", "a", stop)
    times = read_json(tmp_path / TIMES)
    assert list(times["interrupted"]) == ["a"] and not times["seconds"]
    write_json(tmp_path / TIMES, times | {"interrupted": {"a": 1_000.0}})
    again = Demo(DemoConfig(out=str(tmp_path), seed=1))
    again.stage("a", "a", lambda: None)
    assert again.seconds["a"] >= 1_000
    again.stage("a", "a", lambda: None)  # its result was deleted
    assert again.seconds["a"] < 1_000 and read_json(tmp_path / TIMES)["interrupted"] == {}


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    Demo(DemoConfig(out=str(tmp_path), seed=1))
    with pytest.raises(ValueError, match="seed was 1, is 2"):
        Demo(DemoConfig(out=str(tmp_path), seed=2))
    with pytest.raises(ValueError, match="rl_steps was None, is 3"):
        Demo(DemoConfig(out=str(tmp_path), seed=1, rl_steps=3))


def test_command_has_the_values_that_differ_from_its_recipe(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    demo = Demo(DemoConfig(out=str(tmp_path)))
    config = DigitsConfig(out=str(tmp_path / "data"), train=3, validation=2, test=2)
    demo.omr(
        "data", "digits", config.out, recipe=DigitsConfig(out=""), train=3, seed=42, validation=2, test=2
    )()
    assert f"omr data digits {config.out} --train 3 --validation 2 --test 2\n" in capfd.readouterr().out


def test_interrupted_data_continues(tmp_path: Path) -> None:
    command = ["data", "digits", str(tmp_path), "--train", "6", "--validation", "3", "--test", "4"]
    assert main(command) == 0
    first = (tmp_path / "train" / "index.json").read_bytes()
    (tmp_path / "test" / "index.json").unlink()  # as after a kill before the last split was complete
    for left in (tmp_path / "test").iterdir():
        left.unlink()
    assert main(command) == 0
    assert (tmp_path / "train" / "index.json").read_bytes() == first
    assert (tmp_path / "test" / "index.json").exists()


def test_summary_compares_the_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = Demo(DemoConfig(out=str(tmp_path), seed=1))
    right = {"sft": range(40), "rl": range(60)}
    for stage, hits in right.items():
        folder = tmp_path / "eval" / stage
        folder.mkdir(parents=True)
        records = [ScoredResponse(id=str(i), accuracy=float(i in hits)) for i in range(100)]
        (folder / "responses.jsonl").write_bytes(b"".join(record.to_json() for record in records))
        (folder / "summary.json").write_text(json.dumps({"accuracy": len(hits) / 100, "ci95": [0.3, 0.7]}))
    write_summary(demo)
    print_summary(demo)
    summary = json.loads((tmp_path / "summary.json").read_text())
    low, high = summary["difference"]["ci95"]
    assert summary["difference"]["value"] == pytest.approx(0.2) and 0.1 < low < 0.2 < high < 0.3
    assert summary["versions"]["torch"]
    assert "+20.0 points" in capsys.readouterr().out


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tiny_demo_runs_from_data_to_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every stage with its real parts; so few steps teach nothing, so no accuracy is expected."""
    config = DemoConfig(out=str(tmp_path / "demo"), seed=3, train=96, test=16, sft_steps=2, rl_steps=2)
    run_demo(config)
    root = tmp_path / "demo"
    stages = {"data", "model", "sft", "eval sft", "rl", "eval rl"}
    summary = read_json(root / "summary.json")
    assert summary["seconds"].keys() == stages | {"total"} and summary["seed"] == 3
    for name in ("sft", "rl"):
        records = list(read_responses(root / "eval" / name / "responses.jsonl"))
        assert len({record.id for record in records}) == len(records) == 16
        assert all(record.answer and record.decided_by for record in records)
    for name, steps in (("sft", 2), ("rl", 2)):
        assert len((root / name / "metrics.jsonl").read_text().splitlines()) == steps
    page = (root / "report.html").read_text()
    for part in ("accuracy", "supervised-fine-tuning", "reinforcement-learning", "speed", "rollouts"):
        assert f'id="{part}"' in page
    assert "data:image/png;base64" in page and 'id="notes"' not in page

    capfd.readouterr()
    run_demo(config)
    printed = capfd.readouterr().out
    assert printed.count("done before") == len(stages) and "[demo] omr report" in printed
    assert read_json(root / "summary.json") == summary
