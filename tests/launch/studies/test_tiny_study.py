"""A tiny study with its real parts: a teacher is trained, served, asked and checked; a cell learns from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.distill.scoring import read_scores
from data_pipeline.files import read_json
from data_pipeline.shards.format import read_shards
from data_pipeline.verify.record import read_responses
from launch.studies.config import SizeConfig, StudyConfig
from launch.studies.run import run_study


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_cell_learns_from_the_right_responses_of_a_served_teacher(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # forty steps of SFT: enough for some right responses, too few for a good model
    size = SizeConfig(
        train=512, test=16, base_steps=40, teacher_steps=1, questions=256, sft_steps=2, rl_steps=1
    )
    config = StudyConfig(out=str(tmp_path), seeds=(3,), only=("base",), size=size)
    run_study("teacher_choice", config)
    for made, copied in (("base/3/untrained", "teachers/untrained"), ("base/3/base", "teachers/weak")):
        shutil.copytree(tmp_path / made, tmp_path / copied)  # the teacher is such a model of another seed
    config = replace(config, only=("weak_teacher",))
    run_study("teacher_choice", config)
    right = {id for id, rate in read_scores(tmp_path / "responses/weak_1/scores.jsonl").items() if rate == 1}
    learned = list(read_shards(tmp_path / "cells/weak_teacher/samples/right"))
    assert learned and {sample.metadata["question"] for sample in learned} <= right
    # a right response may be unfit to learn from: without thoughts, or cut off
    assert len(learned) == read_json(tmp_path / "responses/weak_1/stats.json")["teacher"]["digits"]["kept"]
    run = tmp_path / "cells/weak_teacher/3/run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and read_json(run / "config.json")["model"] == str(tmp_path / "base/3/base/hf")
    found = read_json(tmp_path / "teacher_choice/results.json")
    for name in ("base", "weak_teacher"):
        records = list(read_responses(tmp_path / f"cells/{name}/3/eval/responses.jsonl"))
        assert len({record.id for record in records}) == len(records) == 16
        accuracy = sum(record.accuracy for record in records) / 16
        assert found["cells"][name]["accuracy"] == {"3": pytest.approx(accuracy)}
    assert found["cells"]["weak_teacher"]["samples"] == len(learned)
    assert not found["claims"] and found["cells"]["x1"]["accuracy"] == {}

    capfd.readouterr()
    run_study("teacher_choice", config)
    assert "[study] omr" not in capfd.readouterr().out
