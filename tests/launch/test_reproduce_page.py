"""The page that leads to the paper's table has the paper's rows, our counts of questions, and the plan's hours."""

from __future__ import annotations

import re

import pytest

from launch.cli import main
from tests.helpers.reproduce_docs import HEAD, PAGE, render

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
    main(["plan", "generate", "--questions", "24842"])
    assert "24,842 responses: 0.2 hours on 8 GPUs, 1.5 GPU hours" in capsys.readouterr().out
    assert "24,842 questions on 8 GPUs: at least 1.5 GPU hours" in TEXT
