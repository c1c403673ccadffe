"""The summary of a demo: both evaluations and their paired difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.verify.record import ScoredResponse
from launch.config import DemoConfig
from launch.stages import Demo
from launch.summary import print_summary, write_summary


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
