"""Scoring a file: every line as the checker scores it, bad lines named, the output whole or absent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.verify.check import check_answer
from data_pipeline.verify.config import CheckerConfig, VerifyConfig
from data_pipeline.verify.record import ScoredResponse, read_responses
from data_pipeline.verify.score_file import CHUNK, score_file

ROOT = Path(__file__).parents[3]
ONE = CheckerConfig(workers=1)
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
    b'{"answer": "1"}': "response: wanted a text, saw nothing",
    b'{"response": "1"}': "answer: wanted a text or a number, saw nothing",
    b'{"response": "1", "answer": true}': "answer: wanted a text or a number, saw bool True",
    b'{"response": "1", "answer": " "}': "answer: ' ' is no reference",
    b"[" * 100_000: "not JSON: it is nested too deeply",
}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("mode", ["strict", "released"])
def test_lines_are_scored_as_by_the_checker_and_keep_their_fields(tmp_path: Path, mode):
    source, out = write_rows(tmp_path / "in.jsonl", ROWS * 2), tmp_path / "new" / "out.jsonl"
    summary = score_file(
        VerifyConfig(source=str(source), out=str(out), checker=CheckerConfig(mode=mode, workers=1))
    )
    written = [json.loads(line) for line in out.read_text().splitlines()]
    for row, found in zip(ROWS * 2, written, strict=True):
        verdict = check_answer(row["response"], str(row["answer"]), mode)
        assert found == row | vars(verdict)
    assert summary.responses == 8 and summary.bad_lines == 0
    assert summary.right == sum(row["accuracy"] for row in written)
    assert sum(summary.decided_by.values()) == 8
    assert summary.format == pytest.approx(0.75)


def test_bad_lines_are_printed_and_left_out(tmp_path: Path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = json.dumps(ROWS[2]).encode()
    source.write_bytes(b"\n".join([good, *BAD, b"", b"   ", good]))
    summary = score_file(VerifyConfig(source=str(source), out=str(out), checker=ONE))
    assert (summary.responses, summary.bad_lines) == (2, len(BAD))
    said = capsys.readouterr().err
    for number, reason in enumerate(BAD.values(), 2):
        assert re.search(rf"{source}:{number}: (unreadable|schema|no_reference): {reason}", said)
    assert len(out.read_text().splitlines()) == 2


def test_too_many_bad_lines_stop_and_leave_out_untouched(tmp_path: Path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    out.write_text("before")
    source.write_bytes(b"\n".join([json.dumps(ROWS[2]).encode()] * (CHUNK + 1) + [b"x"] * 3))
    with pytest.raises(ValueError, match=r"3 of 516 lines are bad, more than max_bad_lines=2 allows"):
        score_file(VerifyConfig(source=str(source), out=str(out), checker=ONE, max_bad_lines=2))
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_share_of_bad_lines_is_judged_at_the_end(tmp_path: Path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"x\n" + json.dumps(ROWS[2]).encode())
    with pytest.raises(ValueError, match=r"1 of 2 lines are bad, more than max_bad_lines=0\.4 allows"):
        score_file(VerifyConfig(source=str(source), out=str(out), checker=ONE, max_bad_lines=0.4))
    assert not out.exists()
    half = VerifyConfig(source=str(source), out=str(out), checker=ONE, max_bad_lines=0.5)
    assert score_file(half).bad_lines == 1


def test_scored_responses_can_be_scored_again(tmp_path: Path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    record = ScoredResponse(id="q7", answer="B", response="<answer>(B)</answer>")
    source.write_bytes(record.to_json())
    score_file(VerifyConfig(source=str(source), out=str(out), checker=ONE))
    (found,) = read_responses(out)
    assert found == record.with_verdict(check_answer("<answer>(B)</answer>", "B"))


def test_empty_file_is_scored(tmp_path: Path):
    source, out = write_rows(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl"
    summary = score_file(VerifyConfig(source=str(source), out=str(out), checker=ONE))
    assert summary.responses == 0 and out.read_text() == ""


def test_impossible_paths_are_refused(tmp_path: Path):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    with pytest.raises(ValueError, match="is not a file"):
        score_file(VerifyConfig(source=str(tmp_path / "no"), out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="is the source"):
        score_file(VerifyConfig(source=str(source), out=str(tmp_path / "." / "in.jsonl")))


def test_command_prints_the_summary(tmp_path: Path):
    source, out = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "verify", "--checker.mode", "released", str(source), str(out)],
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
