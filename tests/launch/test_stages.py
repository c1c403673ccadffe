"""Stages of a demo: finished ones are not repeated, times are kept, commands have what differs from the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.files import read_json, write_json
from data_pipeline.verify.record import ScoredResponse
from launch.config import DemoConfig, DigitsConfig
from launch.demo import run_demo
from launch.stages import TIMES, Demo


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


def test_algorithms_share_a_folder_and_its_stages_but_rl(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last file of each stage is there, so that only summary and report are made."""
    for result in ("data/test/index.json", "model/preprocessor_config.json", "sft/hf/config.json"):
        write_json(tmp_path / result, {})
    for stage, right in {"sft": 0, "rl": 1, "rl_dapo": 1}.items():
        write_json(tmp_path / stage / "hf/config.json", {})
        write_json(tmp_path / "eval" / stage / "summary.json", {"accuracy": right, "ci95": [right, right]})
        record = ScoredResponse(id="question", accuracy=right)
        (tmp_path / "eval" / stage / "responses.jsonl").write_bytes(record.to_json())
    run_demo(DemoConfig(out=str(tmp_path), algorithm="dapo"))
    printed = capfd.readouterr().out
    assert printed.count("done before") == 6 and "omr rl" not in printed
    assert "[demo] rl_dapo: done before" in printed and "[demo] rl: done before" not in printed
    assert "gain by GSPO" in printed and "gain by DAPO" in printed
    summary = read_json(tmp_path / "summary.json")
    assert summary["difference"]["value"] == summary["differences"]["rl_dapo"]["value"] == 1
    assert "after DAPO" in (tmp_path / "report.html").read_text()


def test_folder_with_results_of_single_stages_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()  # as after `omr data digits OUT/data`
    (tmp_path / "data" / "index.json").write_text("{}")
    Demo(DemoConfig(out=str(tmp_path))).stage("data", "data/index.json", lambda: pytest.fail("ran again"))


def test_command_has_the_values_that_differ_from_its_recipe(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    demo = Demo(DemoConfig(out=str(tmp_path)))
    config = DigitsConfig(out=str(tmp_path / "data"), train=3, validation=2, test=2)
    demo.omr(
        "data", "digits", config.out, recipe=DigitsConfig(out=""), train=3, seed=42, validation=2, test=2
    )
    assert f"omr data digits {config.out} --train 3 --validation 2 --test 2\n" in capfd.readouterr().out
