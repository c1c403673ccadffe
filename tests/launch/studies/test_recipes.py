"""Studies: every cell's command sets what the cell says and nothing else; one name is one training everywhere."""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import pytest

from data_pipeline.distill.config import AskConfig, DistillConfig, TeacherConfig
from data_pipeline.select.config import SelectConfig
from launch.arguments import FLAT, recipes, run, with_config
from launch.recipes.rl import RL_RECIPES
from launch.studies import commands
from launch.studies.recipes import STUDIES
from launch.studies.study import Cell, Rl, Sft
from rl.config import RLConfig

CELLS = {(name, cell.name): cell for name, study in STUDIES.items() for cell in study.cells}
RL_CELLS = {cell.name: cell.training for cell in CELLS.values() if isinstance(cell.training, Rl)}
SFT_CELLS = {cell.name: cell.training for cell in CELLS.values() if isinstance(cell.training, Sft)}


def flatten(values: dict, prefix: str = "") -> dict[str, object]:
    """Returns the fields of nested ones by dotted names."""
    flat = {}
    for name, value in values.items():
        nested = flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        flat |= nested
    return flat


@pytest.mark.parametrize("name", RL_CELLS)
def test_values_of_rl_land_in_the_config_of_the_command(name: str) -> None:
    training, seen = RL_CELLS[name], list[RLConfig]()

    def rl(config: Annotated[RLConfig, FLAT]) -> None:
        """Keeps its config."""
        seen.append(config)

    words = commands.rl_words(training, "r", model="m", shards="s", steps=80, seed=7)
    run(recipes(rl, RL_RECIPES), words[1:])
    (config,) = seen
    given = {"run": "r", "model": "m", "shards": "s", "steps": 80, "seed": 7, **training.values}
    assert {field: attrgetter(field)(config) for field in given} == given
    now, before = flatten(asdict(config)), flatten(asdict(RL_RECIPES[training.recipe]()))
    assert {field for field in now if now[field] != before[field]} <= set(given)


@pytest.mark.parametrize("name", SFT_CELLS)
def test_filters_land_in_the_config_of_selection(name: str) -> None:
    training, seen = SFT_CELLS[name], list[SelectConfig]()

    def select(config: Annotated[SelectConfig, FLAT]) -> None:
        """Keeps its config."""
        seen.append(config)

    command = with_config(select, SelectConfig(shards="", out=""))
    words = commands.select_words(training, "responses", "out")
    run(command, ["--shards", words[2], "--out", *words[3:]])
    (config,) = seen
    assert (config.shards, config.out) == ("responses/shards", "out")
    assert config.filters == type(config.filters)(**training.filters)
    assert bool(config.scores) == training.needs_pass_rates


def test_a_teacher_is_scored_and_distilled_with_the_same_settings() -> None:
    """The second command finds the responses that the first one asked for."""
    seen = list[TeacherConfig]()

    def score(config: Annotated[AskConfig, FLAT]) -> None:
        """Keeps its teacher."""
        seen.append(config.teacher)

    def distill(config: Annotated[DistillConfig, FLAT]) -> None:
        """Keeps its teacher."""
        seen.extend(config.teachers)

    url = "http://127.0.0.1:9/v1"
    asked = commands.score_words("questions", "out", asked=8, url=url)
    kept = commands.distill_words("questions", "out", asked=8, url=url)
    for command, config, words in (
        (score, AskConfig(shards="", out="", teacher=commands.SCORING), asked),
        (distill, DistillConfig(shards="", out=""), kept),
    ):
        run(with_config(command, config), ["--shards", words[2], "--out", words[3], *words[4:]])
    assert seen[0] == seen[1] and (seen[0].k, seen[0].server.base_url) == (8, url)


def test_cells_of_one_name_are_one_training() -> None:
    by_name: dict[str, Cell] = {}
    for cell in CELLS.values():
        assert by_name.setdefault(cell.name, cell).training == cell.training, cell.name
    folders = {cell.name for cell in CELLS.values()}
    assert all(Path(name).name == name for name in folders)


def test_claims_are_the_papers() -> None:
    """Every cell has a row in the reference data; what a study says is better is better there."""
    points = {
        (name, claim.worse): study.read_points(claim)
        for name, study in STUDIES.items()
        for claim in study.claims
    }
    assert all(each > 0 for each in points.values())
    assert points["answer_diversity", "x1"] == pytest.approx(4.7)  # 55.2 - 50.5
    assert points["temperature", "gspo_t1.4"] == pytest.approx(43.6)  # 51.0 - 7.4
    assert all(cell.paper_mean > 0 for cell in CELLS.values())
