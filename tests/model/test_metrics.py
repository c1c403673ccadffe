"""Metrics: JSON lines that resume, TensorBoard, and the error where wandb is missing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from launch.report.load import load_run
from megatron_omr.config import LogConfig
from megatron_omr.train.metrics import JsonLines, MetricsLog, read_json_lines


def test_resumed_log_drops_the_lines_of_repeated_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = "".join(json.dumps({"step": s, "loss": s / 2}) + "\n" for s in range(5))
    path.write_text(rows + '{"step": 5, "lo')  # cut short by a kill
    lines = JsonLines(path, first_step=3)
    lines.write(3, {"loss": 9.0})
    lines.close()
    assert [(row["step"], row["loss"]) for row in read_json_lines(path)] == [(0, 0), (1, 0.5), (2, 1), (3, 9)]


def test_nan_becomes_null_in_the_file_and_is_no_point_in_the_report(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, LogConfig(tensorboard=False), steps=2, first_step=0, name="sft")
    log.write(0, {"loss": float("nan"), "lr": 1.0}, show=("loss",))
    log.write(1, {"loss": 2.0, "lr": float("inf")}, show=("loss",))
    log.close()
    assert read_json_lines(tmp_path / "metrics.jsonl") == [
        {"step": 0, "loss": None, "lr": 1.0},
        {"step": 1, "loss": 2.0, "lr": None},
    ]
    run = load_run(tmp_path)
    assert run.notes == () and run.sft is not None and run.sft.points("loss") == ((1, 2.0),)


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, LogConfig(), steps=3, first_step=0, name="sft")
    for step in range(3):
        log.write(step, {"loss": 3.0 - step})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_missing_wandb_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install wandb"):
        MetricsLog(tmp_path, LogConfig(tensorboard=False, wandb="project"), steps=1, first_step=0, name="sft")
