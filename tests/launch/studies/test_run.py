"""A study's folder: what is done is not repeated, the table has it, and a dry run's commands parse."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.files import read_json, write_json
from launch.arguments import run
from launch.cli import OMR, main
from launch.studies.config import SizeConfig, StudyConfig
from launch.studies.lab import Lab
from launch.studies.recipes import STUDIES
from launch.studies.run import run_study
from launch.studies.study import Rl
from rl.types import AskedResponse
from tests.test_docs import without_effect


def finish_cell(lab: Lab, name: str, seed: int, accuracies: list[float]) -> None:
    """Writes what a cell's evaluation leaves."""
    cell = next(cell for study in STUDIES.values() for cell in study.cells if cell.name == name)
    lab.claim(cell)
    folder = lab.root / lab.evaluation(cell, seed)
    folder.mkdir(parents=True)
    records = [AskedResponse(id=str(i), accuracy=value) for i, value in enumerate(accuracies)]
    (folder / "responses.jsonl").write_bytes(b"".join(record.to_json() for record in records))
    write_json(folder / "summary.json", {"length": {"mean": 20.0 + seed}})


def finish_stages(root: Path, seed: int, cell: str) -> None:
    """Writes the last file of each stage before the evaluation of a cell of RL."""
    done = ("data/digits/test/index.json", "data/rl/test/index.json")
    base = (f"base/{seed}/untrained/preprocessor_config.json", f"base/{seed}/base/hf/config.json")
    for place in (*done, *base, f"cells/{cell}/{seed}/run/hf/config.json"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("{}")


def test_finished_cells_are_not_repeated_and_are_in_the_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = StudyConfig(out=str(tmp_path), seeds=(1, 2, 3), only=("gspo", "gspo_n16"))
    lab = Lab(config)
    for seed in (1, 2, 3):
        for name, right in (("gspo", [0.0, 1.0] * 40), ("gspo_n16", [1.0, 1.0, 0.0, 1.0] * 20)):
            finish_cell(lab, name, seed, right)
            finish_stages(tmp_path, seed, name)
    run_study("rollouts", config)
    printed = capfd.readouterr().out
    assert "[study] omr" not in printed and printed.count("done before") == 6 * 6
    table = (tmp_path / "rollouts/table.md").read_text()
    assert table in printed
    assert "| base model | | | | | | 49.4 |" in table
    assert "| 8 rollouts |  | 50.0 % | 1: 50.0, 2: 50.0, 3: 50.0 |  | 22.0 | 51.6 |" in table
    assert "| 16 rollouts |  | 75.0 % | 1: 75.0, 2: 75.0, 3: 75.0 | +25.0 [" in table
    assert "16 rollouts above 8 rollouts (+2.7), shows at this size: +25.0" in table
    found = read_json(tmp_path / "rollouts/results.json")
    assert found["claims"][0]["verdict"] == "shows" and found["size"]["rl_steps"] == SizeConfig().rl_steps
    assert found["cells"]["base"]["accuracy"] == {}


def test_the_table_has_the_seeds_of_earlier_runs(tmp_path: Path) -> None:
    """Whatever seeds a run names: two cells are compared over those that both have."""
    for name, seeds in (("gspo", (1, 2, 3)), ("gspo_n16", (2,))):
        lab = Lab(StudyConfig(out=str(tmp_path), seeds=seeds))
        for seed in seeds:
            finish_cell(lab, name, seed, [float(i % seed == 0) for i in range(12)])
            finish_stages(tmp_path, seed, name)
    (tmp_path / "cells/gspo/1").rename(tmp_path / "cells/gspo/1.old")
    run_study("rollouts", StudyConfig(out=str(tmp_path), seeds=(2,), only=("gspo_n16",)))
    table = (tmp_path / "rollouts/table.md").read_text()
    assert "| 8 rollouts |  | 41.7 % | 2: 50.0, 3: 33.3 |" in table
    assert "| 16 rollouts |  | 50.0 % | 2: 50.0 | +0.0 [" in table
    assert "is not decided at this size: +0.0 [+0.0, +0.0] points, by seed +0.0." in table


def test_a_cell_of_another_training_is_not_taken_for_this_one(tmp_path: Path) -> None:
    lab = Lab(StudyConfig(out=str(tmp_path)))
    cell = STUDIES["rollouts"].cell("gspo")
    finish_cell(lab, "gspo", 7, [1.0, 0.0])
    finish_stages(tmp_path, 7, "gspo")
    lab.share(cell, 7)
    other = replace(cell, training=Rl(values={"sampling.n": 4}))
    with pytest.raises(ValueError, match=r"cells/gspo was made with other settings: values was"):
        lab.share(other, 7)
    with pytest.raises(ValueError, match=r"cells/gspo was made with other settings: values was"):
        lab.find_done(other)
    (tmp_path / "cells/gspo/cell.json").unlink()
    with pytest.raises(ValueError, match=r"cells/gspo is not empty and has no cell.json"):
        lab.find_done(cell)


def test_other_sizes_need_another_folder(tmp_path: Path) -> None:
    Lab(StudyConfig(out=str(tmp_path)))
    Lab(StudyConfig(out=str(tmp_path), seeds=(5,), only=("x1",)))
    with pytest.raises(ValueError, match="rl_steps was 80, is 2"):
        Lab(StudyConfig(out=str(tmp_path), size=SizeConfig(rl_steps=2)))


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    assert main(["study", "rollout", *out]) == 2
    assert "did you mean 'rollouts'?" in capsys.readouterr().err
    assert main(["study", "rollouts", "--only", "gspo_16", *out]) == 2
    assert "no cell 'gspo_16'; did you mean 'gspo_n16'?" in capsys.readouterr().err
    assert main(["study", "rollouts", "--seeds", "1", "1", *out]) == 2
    assert "all different" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def dry_run(name: str, out: Path, capfd: pytest.CaptureFixture[str], on: str = "") -> list[str]:
    """Returns the commands that a study would run at two seeds."""
    run_study(name, StudyConfig(out=str(out), seeds=(7, 8), on=on, dry_run=True))
    return [line for line in capfd.readouterr().out.splitlines() if line.startswith("omr ")]


@pytest.mark.parametrize("name", STUDIES)
def test_dry_run_prints_each_training_once_and_writes_nothing(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = dry_run(name, tmp_path / "studies", capfd)
    assert not list(tmp_path.iterdir())
    trained = [line for line in lines if line.startswith(("omr sft", "omr rl"))]
    assert len(set(trained)) == len(trained)
    in_cells = [line for line in trained if "/cells/" in line]
    assert len(in_cells) == 2 * sum(cell.training is not None for cell in STUDIES[name].cells)


@pytest.mark.parametrize(
    ("name", "on"), [("domain_mixing", ""), ("difficulty_filter", ""), ("curriculum", "local")]
)
def test_commands_parse(name: str, on: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(name, tmp_path, capfd, on)
    kinds = {" ".join(line.split()[1:4]): line for line in lines}  # one of each kind
    for line in kinds.values():
        run(without_effect(OMR, {}), shlex.split(line)[1:])
    cells = [line for line in lines if "/cells/" in line]
    assert all(line.startswith("omr launch ") == bool(on) for line in cells)
    assert not any(line.startswith("omr launch ") for line in lines if "/cells/" not in line)
