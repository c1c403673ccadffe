"""The import of a benchmark: where its rows are taken from, and what is refused as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.benchmarks.import_benchmark import fill_rows, find_questions, import_questions
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.shards.index import ShardIndex
from data_pipeline.sources.config import ImportConfig, RowsConfig
from launch.cli import main
from tests.helpers.benchmarks import ROWS, write_benchmark

MATHVISTA = BENCHMARKS["mathvista_testmini"]


def config(path: Path, out: Path, **changes: object) -> ImportConfig:
    return replace(ImportConfig(rows=RowsConfig(path=str(path)), out=str(out)), **changes)


def test_another_number_of_questions_is_an_error_each_time(tmp_path: Path):
    given = config(write_benchmark("mathvista_testmini", tmp_path), tmp_path / "shards")
    wrong = r"has 1,000 questions \(AI4Math/MathVista split testmini\), and .* gave 2"
    for _ in range(2):
        with pytest.raises(ValueError, match=wrong):
            import_questions(MATHVISTA, given)
    assert import_questions(MATHVISTA, given, count=2).samples == 2
    assert import_questions(MATHVISTA, given, count=0).samples == 2


def test_refused_questions_are_not_asked_by_the_next_command(tmp_path: Path):
    path = write_benchmark("mathvista_testmini", tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="omr data benchmark mathvista_testmini"):
            find_questions(MATHVISTA, tmp_path / "root", str(path), is_only=True)
    import_questions(MATHVISTA, config(path, tmp_path / "root" / MATHVISTA.name), count=2)
    assert find_questions(MATHVISTA, tmp_path / "root", str(path)).rows == 2


def test_a_limit_takes_the_first_questions(tmp_path: Path):
    path = write_benchmark("mathvista_testmini", tmp_path)
    assert import_questions(MATHVISTA, config(path, tmp_path / "shards", limit=1)).samples == 1


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path):
    rows = [*ROWS["logicvista"], ROWS["logicvista"][0] | {"answer": ""}]
    given = config(write_benchmark("logicvista", tmp_path, rows), tmp_path / "shards", max_bad_samples=1)
    report = import_questions(BENCHMARKS["logicvista"], given, count=3)
    assert (report.rows, report.samples) == (3, 2)
    assert "1 text, the first: row 2: text: answer: wanted text, saw an empty one" in report.describe(
        "out", 0
    )


def test_rows_of_another_benchmark_say_what_is_missing(tmp_path: Path):
    given = config(write_benchmark("mathvision_test", tmp_path), tmp_path / "shards", max_bad_samples=1.0)
    with pytest.raises(
        ValueError, match=r"(?s)no row of .* is a sample of mathvista_testmini; .*columns pid, choices"
    ):
        import_questions(MATHVISTA, given)
    assert not (tmp_path / "shards" / "index.json").exists()


def test_published_place_is_the_default():
    filled = fill_rows(MATHVISTA, RowsConfig(path=""))
    assert (filled.path, filled.split, filled.revision) == (
        "AI4Math/MathVista",
        "testmini",
        MATHVISTA.revision,
    )
    own = fill_rows(MATHVISTA, RowsConfig(path="", split="test", revision="main"))
    assert (own.split, own.revision) == ("test", "main")
    assert fill_rows(BENCHMARKS["mmmu_pro_vision"], RowsConfig(path="")).subset == "vision"
    with pytest.raises(ValueError, match="mars2_vg_rs is not on the hub"):
        fill_rows(BENCHMARKS["mars2_vg_rs"], RowsConfig(path=""))


def test_a_downloaded_folder_gives_the_files_of_subset_and_split(tmp_path: Path):
    write_benchmark("charxiv_reasoning", tmp_path).rename(tmp_path / "val.parquet")
    filled = fill_rows(BENCHMARKS["charxiv_reasoning"], RowsConfig(path=str(tmp_path)))
    assert (filled.path, filled.split, filled.revision) == (str(tmp_path), "val", None)
    (tmp_path / "vision").mkdir()
    assert fill_rows(BENCHMARKS["mmmu_pro_vision"], RowsConfig(path=str(tmp_path))).path == str(
        tmp_path / "vision"
    )


def test_command_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, out = write_benchmark("gpqa_diamond", tmp_path), tmp_path / "shards"
    command = ["data", "benchmark", "gpqa_diamond", str(out), "--path", str(path)]
    assert main(command) == 2 and "gpqa_diamond has 198 questions" in capsys.readouterr().err
    assert main([*command, "--count", "1"]) == 0
    assert "1 rows: 1 samples" in capsys.readouterr().out and len(ShardIndex.load(out)) == 1


@pytest.mark.heavy
def test_command_checks_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_benchmark("gpqa_diamond", tmp_path)
    with pytest.raises(SystemExit) as leave:
        main(["data", "benchmark", "gpqa_diamond", "--check", "--path", str(path)])
    assert not leave.value.code and "gpqa_diamond: 1 of 1 rows match" in capsys.readouterr().out
