"""Files of a run: what cannot be read is left out and noted."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.errors import BadSample
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.writer import write_shards
from data_pipeline.verify.record import ScoredResponse
from launch.report.load import accuracy_by_id, load_run, load_thumbnails
from launch.report.page import draw_strip
from tests.helpers.report_run import sft_row, write_json, write_lines, write_run
from tests.helpers.videos import ask_about, make_video


def test_bad_lines_are_counted_and_resumed_steps_count_once(tmp_path: Path):
    path = tmp_path / "sft/metrics.jsonl"
    write_lines(
        path, [{"step": 1, "loss": 9.0}, {"step": 2, "loss": math.nan}, [1], {"loss": 3}, {"step": None}]
    )
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n{"step": 1, "loss": 4.25, "name": "text is ignored"}\n{"step": 3, "lo')
    run = load_run(tmp_path)
    assert run.notes == ("sft/metrics.jsonl: 5 unreadable lines were skipped.",)
    assert run.sft is not None and run.sft.points("loss") == ((1, 4.25),)
    assert [step for step, _ in run.sft.rows] == [1, 2] and run.sft.rows[0][1] == {"loss": 4.25}


def test_malformed_summaries_are_noted(tmp_path: Path):
    write_lines(tmp_path / "sft/metrics.jsonl", [sft_row(1)])
    (tmp_path / "summary.json").write_text("{")
    write_json(tmp_path / "eval/sft/summary.json", {"accuracy": "high", "ci95": None, "by_kind": []})
    write_json(tmp_path / "eval/rl/summary.json", {"accuracy": math.nan, "ci95": [0, 1]})
    run = load_run(tmp_path)
    assert run.evaluations == () and len(run.notes) == 3
    assert run.notes[0].startswith(
        f"{tmp_path.name}/summary.json is not readable and is left out (Invalid JSON"
    )
    assert run.notes[1].startswith(
        "rl/summary.json is not readable and is left out (Value error, an interval"
    )
    assert run.notes[2].startswith(
        "sft/summary.json is not readable and is left out (Value error, wanted accuracy"
    )


def test_groups_are_those_of_a_few_steps_with_their_images(tmp_path: Path):
    run = load_run(write_run(tmp_path / "demo"))
    assert sorted({each.group.step for each in run.groups}) == [1, 13, 25, 31, 43, 55]
    assert all(each.images and len(each.group.responses) == 8 for each in run.groups)
    path = tmp_path / "demo/rl/rollouts.jsonl"
    first = path.read_text().splitlines()[0]
    path.write_text(first.replace('"reward": 0', '"reward": "0', 1) + "\n" + first + "\n")
    torn = load_run(tmp_path / "demo")
    assert len(torn.groups) == 1 and "rl/rollouts.jsonl: 1 unreadable line was skipped." in torn.notes


def test_accuracy_of_a_question_is_the_mean_of_its_responses():
    records = [
        ScoredResponse(id=name, accuracy=value) for name, value in (("a", 1.0), ("b", 0.0), ("a", 0.0))
    ]
    assert accuracy_by_id(records) == {"a": 0.5, "b": 0.0}


def test_empty_folder_is_an_error_that_names_the_wanted_files(tmp_path: Path):
    with pytest.raises(ValueError, match=r"sft/metrics\.jsonl.*runs/demo"):
        load_run(tmp_path)


def test_a_video_is_shown_as_a_sheet_of_its_frames(tmp_path: Path):
    write_shards([ask_about([make_video(5), make_video(40, size=(112, 56))])], tmp_path)
    (ref,) = ShardIndex.load(tmp_path)
    sheets = load_thumbnails(str(tmp_path), ref)
    assert sheets is not None and len(sheets) == 2
    five, many = (Image.open(io.BytesIO(sheet)) for sheet in sheets)
    assert five.size == (3 * 57, 2 * 85)  # rows of three frames, of their own size
    assert many.width == 3 * 107 and many.height == 3 * 54  # nine of 40, scaled down to a third of the side


def test_a_video_with_a_broken_frame_has_no_sheet():
    video = make_video(2)
    whole, torn = video.frames[0], video.frames[1][: len(video.frames[1]) // 2]
    bomb = whole.replace((56).to_bytes(4, "big") + (84).to_bytes(4, "big"), (60_000).to_bytes(4, "big") * 2)
    for broken in (torn, bomb):
        with pytest.raises(BadSample):
            draw_strip([whole, broken], 100)
