"""The demo at a tiny size, with its real parts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.files import read_json
from data_pipeline.verify.record import read_responses
from launch.config import DemoConfig
from launch.demo import run_demo
from launch.recipes import sft as sft_recipes
from launch.report.compare_page import write_comparison
from tests.helpers.browser import ParsedPage
from tests.helpers.page_watcher import watching


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_tiny_demo_runs_from_data_to_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every stage with its real parts, RL by two algorithms; so few steps teach nothing, so no accuracy is expected.

    Meanwhile the live page is open in a browser.
    """
    config = DemoConfig(out=str(tmp_path / "demo"), seed=3, train=96, test=16, sft_steps=2, rl_steps=2)
    root = tmp_path / "demo"
    with watching(root, tmp_path / "profile") as page:
        run_demo(config)
        page.check()
    stages = {"data", "model", "sft", "eval sft", "rl", "eval rl"}
    summary = read_json(root / "summary.json")
    assert summary["seconds"].keys() == stages | {"total"} and summary["seed"] == 3
    for name in ("sft", "rl"):
        records = list(read_responses(root / "eval" / name / "responses.jsonl"))
        assert len({record.id for record in records}) == len(records) == 16
        assert all(record.answer and record.decided_by for record in records)
    for name, steps in (("sft", 2), ("rl", 2)):
        assert len((root / name / "metrics.jsonl").read_text().splitlines()) == steps
    for line in (
        (root / "sft/metrics.jsonl").read_text().splitlines()
    ):  # before the first step and after the last
        assert json.loads(line)["validation_samples"] == sft_recipes.demo().validation.limit
    page = (root / "report.html").read_text()
    for part in ("accuracy", "supervised-fine-tuning", "reinforcement-learning", "speed", "rollouts"):
        assert f'id="{part}"' in page
    assert "data:image/png;base64" in page and 'id="notes"' not in page

    # another algorithm: its RL alone, as the evaluation of its policy would be that of GSPO's once more
    shutil.copytree(root / "eval/rl", root / "eval/rl_visurf")
    capfd.readouterr()
    run_demo(replace(config, algorithm="visurf"))
    printed = capfd.readouterr().out
    assert printed.count("done before") == len(stages) - 1 and "[demo] omr report" in printed
    rows = [json.loads(line) for line in (root / "rl_visurf/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["solutions_used"] > 0 for row in rows)
    both = read_json(root / "summary.json")
    assert both["differences"].keys() == {"rl_visurf"}
    assert {name: both[name] for name in ("sft", "rl", "difference")} == {
        name: summary[name] for name in ("sft", "rl", "difference")
    }
    assert 'id="algorithms-side-by-side"' in (root / "report.html").read_text()
    page = ParsedPage(write_comparison([root], tmp_path / "compare.html"))
    assert {"chart-compare-reward", "chart-compare-clip", "chart-compare-solutions"} <= page.ids
    assert "algorithm.solution.enabled" in page.text and "unfinished" not in page.text
