"""`omr data import --check` tells which of the first rows match, which do not, and how to fix them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.sources.check_rows import check_corpus
from data_pipeline.sources.config import CheckRowsConfig, ImportConfig, RowsConfig
from data_pipeline.sources.import_corpus import import_corpus
from launch import cli
from tests.helpers.corpora import CLOCK, FIXTURES, IMAGES, question_rows, write_corpus, write_jsonl

ROWS = question_rows(8)


def check(corpus: str, path: Path, images: str = "", count: int = 100) -> tuple[bool, str]:
    report = check_corpus(
        corpus, CheckRowsConfig(rows=RowsConfig(path=str(path), images=images), count=count)
    )
    return report.ok, "\n".join(report.lines)


def test_matching_rows_are_counted_and_the_first_is_shown(tmp_path: Path):
    ok, printed = check("llava_cot", write_corpus("llava_cot", tmp_path), images=str(FIXTURES))
    assert ok and printed.startswith("llava_cot: 3 of 3 rows match\nrow 0 becomes llava_cot/sqa/11-")
    assert "image      PNG, 56 x 56" in printed and "answer     B" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["llava_cot.jsonl"], "writes nothing"


def test_only_the_first_rows_are_read(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"bad": 1}, *ROWS])
    assert check("questions", path, count=3)[1].startswith("questions: 2 of 3 rows match")


def test_problems_name_row_wanted_seen_and_fix(tmp_path: Path):
    rows = [dict(row) for row in ROWS]
    del rows[1]["question"]
    rows[2]["question"] = ["a", "b"]
    rows[4]["image"] = "missing.png"
    rows[5]["images"] = [(IMAGES / "bars.png").read_bytes()[:150].hex()]
    rows[6]["answer"] = ""
    ok, printed = check("questions", write_jsonl(tmp_path / "a.jsonl", rows))
    assert not ok and printed.startswith("questions: 3 of 8 rows match")
    assert "row 1, schema: question: wanted a text column, saw nothing; this row has id, answer" in printed
    assert "row 2, schema: question: wanted text, saw a list of 2, first str 'a'; " in printed
    assert "row 4, image: cannot read" in printed and "is rows.images the right folder?" in printed
    assert "row 6, text: answer: wanted text, saw an empty one; drop the row" in printed


def test_images_are_decoded_in_full(tmp_path: Path):
    (tmp_path / "torn.jpg").write_bytes(CLOCK[:700])
    path = write_jsonl(tmp_path / "a.jsonl", [{**ROWS[0], "image": "torn.jpg"}])
    ok, printed = check("questions", path)
    assert not ok and "row 0, image: cannot decode 700 bytes" in printed


def test_rows_that_a_model_refuses_are_found(
    tmp_path: Path, tiny_hf: Path, capsys: pytest.CaptureFixture[str]
):
    """A blank response and half a surrogate pair without a model, too: the import drops them."""
    texts = [
        ("a", "b"),
        ("a", " "),
        ("a\ud800", "b"),
        ("<|im_end|>", "b"),
        ("a " * 2_000, "b"),
        ("a", "<|im_start|>"),
    ]
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in texts
    ]
    rows = [{"messages": messages, "answer": "b"} for messages in turns]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "messages: 4 of 6 rows match" in check("messages", path)[1]
    words = [
        "data",
        "import",
        "messages",
        str(path),
        "--check",
        "--model",
        str(tiny_hf),
        "--max_tokens",
        "1000",
    ]
    with pytest.raises(SystemExit, match="1"):
        cli.main(words)
    printed = capsys.readouterr().out
    assert "messages: 1 of 6 rows match" in printed and "row 4, too_long: " in printed
    for row in (1, 2, 3):
        assert f"row {row}, text: " in printed
    config = ImportConfig(rows=RowsConfig(path=str(path)), out=str(tmp_path / "s"), max_bad_samples=2)
    report = import_corpus("messages", config)
    assert (report.samples, report.bad.counts) == (4, {"text": 2})


def test_corpora_that_fit_the_first_row_are_named(tmp_path: Path):
    ok, printed = check("llava_cot", write_corpus("mmk12", tmp_path))
    assert not ok and "0 of 2 rows match" in printed
    fitting = "questions, mmfinereason, mmk12, virl39k, we_math_standard, we_math_pro"
    assert f"the first row fits {fitting}" in printed


def test_rows_without_an_answer_are_counted_and_repeated_problems_shortened(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}] * 50 + [{"messages": []}] * 5)
    ok, printed = check("messages", path)
    assert ok and "50 matching rows have no reference answer, the first is row 0" in printed
    assert printed.count("a list of turns") == 3 and "and 2 more rows like these" in printed


def test_command_exits_with_one_when_too_few_rows_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = str(write_corpus("mmr1", tmp_path))
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "import", "mmr1", path, "--rows.images", str(FIXTURES), "--check"])
    assert left.value.code == 0 and "mmr1: 2 of 2 rows match" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "import", "mmk12", path, "--check"])
    assert left.value.code == 1
