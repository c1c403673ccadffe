"""The page that leads to the paper's table has the paper's rows, our counts of questions, and the plan's hours."""

from __future__ import annotations

import re

import pytest

from data_pipeline.benchmarks.registry import BENCHMARKS
from launch.cli import main
from launch.published.openmmreasoner import MAIN
from launch.published.openmmreasoner import TEXT as TEXT_TABLE
from launch.recipes.data import openmmreasoner_rl, openmmreasoner_sft
from tests.helpers.reproduce_docs import HEAD, PAGE, error_of_mean, render

DATA = PAGE.with_name("data.md")
TEXT = PAGE.read_text(encoding="utf-8")


def test_table_is_that_of_the_reference_data():
    assert HEAD in TEXT
    assert render(TEXT) == TEXT, "python -m tests.helpers.reproduce_docs writes the table anew"


@pytest.mark.parametrize("recipe", ["qwen2_5_vl_7b_sft", "openmmreasoner_gspo"])
def test_hours_are_those_of_the_plan(recipe: str, capsys: pytest.CaptureFixture[str]):
    main(["plan", recipe])
    planned = re.search(
        r"^([\d,]+ steps): (.* hours) on (\d+ GPUs), (.* GPU hours)$", capsys.readouterr().out, re.M
    )
    assert planned
    steps, hours, gpus, gpu_hours = planned.groups()
    assert f"{steps} on {gpus}: {hours}, {gpu_hours}" in TEXT


def test_hours_of_engines_are_those_of_the_plan(capsys: pytest.CaptureFixture[str]):
    columns = [*MAIN.columns, *TEXT_TABLE.columns]
    responses = sum(BENCHMARKS[name].count * BENCHMARKS[name].n for name in columns)
    main(["plan", "generate", "--questions", str(responses)])
    assert f"{responses:,} responses: 0.2 hours on 8 GPUs, 1.5 GPU hours" in capsys.readouterr().out
    assert f"{responses:,} responses on 8 GPUs: at least 1.5 GPU hours" in TEXT


def test_hours_of_the_teacher_are_those_of_the_plan(capsys: pytest.CaptureFixture[str]):
    (command,) = re.findall(r"^omr (plan generate .*)$", TEXT, re.M)
    main(command.split())
    planned = re.search(r"^824,000 responses: .*, (\d+ GPU hours)$", capsys.readouterr().out, re.M)
    assert planned and f"The plan says {planned[1]} for responses of 1,000 tokens" in TEXT


def test_evaluation_has_the_judge_that_its_tolerances_need():
    (command,) = re.findall(r"^\| evaluation \| `(omr launch eval [^`]*)`", TEXT, re.M)
    assert "--reward.use_judge --reward.judge.base_url http://JUDGE:8001/v1" in command


def test_each_corpus_of_the_recipes_is_downloaded_to_where_they_look_for_it():
    listed = re.findall(r"^([\w.-]+/[\w.-]+) (\w+)$", TEXT, re.M)
    published = dict(
        re.findall(r"^\| `(\w+)` \| \[([\w.-]+/[\w.-]+)\]", DATA.read_text(encoding="utf-8"), re.M)
    )
    assert all(published[name] == id for id, name in listed), "docs/data.md has the same ids"
    sources = (*openmmreasoner_sft().sources, *openmmreasoner_rl().sources)
    wanted = {source.rows.path.removeprefix("./") for source in sources}
    assert {f"corpora/{name}" for _, name in listed} | {"corpora/tqa"} == wanted
    assert "into `corpora/tqa`" in TEXT


def test_shared_questions_make_the_mean_less_certain():
    apart = {"mathvision_test": 1.0, "mmmu_pro_vision": 1.0}
    assert error_of_mean(apart) == pytest.approx(2**0.5 / 2)
    assert error_of_mean({"mmmu_pro_standard": 1.0, "mmmu_pro_vision": 1.0}) == pytest.approx(1.0)
    part = {"mathvision_test": 1.0, "mathvision_testmini": 1.0}  # a tenth of the questions
    assert error_of_mean(part) == pytest.approx((2 + 2 * 0.1**0.5) ** 0.5 / 2)
