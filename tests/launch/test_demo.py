"""The demo at a tiny size, with its real parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.files import read_json
from data_pipeline.verify.record import read_responses
from launch.config import DemoConfig
from launch.demo import run_demo


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
