"""`omr verify`: every line scored as the checker scores it, bad lines named, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.verify.check import check_answer
from data_pipeline.verify.config import VerifyConfig
from data_pipeline.verify.score_file import CHUNK, verify_file

ROOT = Path(__file__).parents[3]
ROWS = [
    {"response": "<think>r</think><answer>A or B</answer>", "answer": "A", "id": 1},
    {"response": r"<think>r</think><answer>\sqrt{12}</answer>", "answer": r"2\sqrt{3}", "note": "ü \ud800"},
    {"response": "<think>r</think><answer>42</answer>", "answer": 42, "accuracy": "overwritten"},
    {"response": "nothing", "answer": 1.5},
]
BAD = {
    b"{not json": "not JSON",
    b"\xff\xfe": "not JSON",
    b"[1, 2]": "not a JSON object",
    b'{"answer": "1"}': "no text in the field response",
    b'{"response": "1"}': "neither text nor a number in the field answer",
    b'{"response": "1", "answer": true}': "neither text nor a number in the field answer",
    b"[" * 100_000: "nested too deep",
}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("mode", ["strict", "released"])
def test_scores_lines_as_the_checker_does_and_keeps_their_fields(tmp_path: Path, mode):
    source, out = write_rows(tmp_path / "in.jsonl", ROWS * 2), tmp_path / "new" / "out.jsonl"
    summary = verify_file(VerifyConfig(source=str(source), out=str(out), mode=mode, workers=1))
    written = [json.loads(line) for line in out.read_text().splitlines()]
    for row, found in zip(ROWS * 2, written, strict=True):
        verdict = check_answer(row["response"], str(row["answer"]), mode)
        assert found == row | vars(verdict)
    assert summary.answers == 8 and summary.bad_lines == 0
    assert summary.right == sum(row["accuracy"] for row in written)
    assert sum(summary.decided_by.values()) == 8
    assert summary.format == pytest.approx(0.75)


def test_bad_lines_are_named_and_left_out(tmp_path: Path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = json.dumps(ROWS[2]).encode()
    source.write_bytes(b"\n".join([good, *BAD, b"", b"   ", good]))
    summary = verify_file(VerifyConfig(source=str(source), out=str(out), workers=1))
    assert (summary.answers, summary.bad_lines) == (2, len(BAD))
    said = capsys.readouterr().err
    for number, reason in enumerate(BAD.values(), 2):
        assert f"{source}:{number}: {reason}" in said
    assert len(out.read_text().splitlines()) == 2


def test_too_many_bad_lines_stop_and_leave_what_was_there(tmp_path: Path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    out.write_text("before")
    source.write_bytes(b"\n".join([json.dumps(ROWS[2]).encode()] * (CHUNK + 1) + [b"x"] * 3))
    with pytest.raises(ValueError, match=r"max_bad_lines=2 bad lines, the last at .*:516: not JSON"):
        verify_file(VerifyConfig(source=str(source), out=str(out), workers=1, max_bad_lines=2))
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_empty_file_is_scored(tmp_path: Path):
    source, out = write_rows(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl"
    summary = verify_file(VerifyConfig(source=str(source), out=str(out), workers=1))
    assert summary.answers == 0 and out.read_text() == ""


def test_refuses_what_cannot_work(tmp_path: Path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(ValueError, match="is not a file"):
        verify_file(VerifyConfig(source=str(tmp_path / "no"), out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="is the source"):
        verify_file(VerifyConfig(source=str(source), out=str(tmp_path / "." / "in.jsonl")))
    with pytest.raises(ValueError, match="workers=0"):
        VerifyConfig(source="a", out="b", workers=0)


def test_the_command_says_what_it_found(tmp_path: Path):
    source, out = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "verify", "--mode", "released", str(source), str(out)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "2 of 4 right, format 0.750, bad lines 0" in done.stdout
    assert "decided by " in done.stdout and "exact 1" in done.stdout
    assert len(out.read_text().splitlines()) == 4
