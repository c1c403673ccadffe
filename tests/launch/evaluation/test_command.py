"""`omr eval BENCHMARK ...`: rows of the published schemas are imported, asked through vLLM, scored and tabled."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.benchmarks.groups import GROUPS
from data_pipeline.benchmarks.import_benchmark import find_download, import_questions
from data_pipeline.benchmarks.registry import BENCHMARKS
from data_pipeline.files import read_json
from data_pipeline.sources.config import ImportConfig, RowsConfig
from data_pipeline.verify.record import read_responses
from launch.cli import main
from rl.evaluation.scores import load_scores
from rl.types import AskedResponse
from tests.helpers.benchmarks import ROWS, write_benchmark

NAMES = ("dynamath", "aime24", "mmmu_val")
ENGINE = ("--engine.precision", "fp32", "--engine.max_num_seqs", "8", "--engine.cpu_kv_cache_gib", "0.1")


def import_small(names: tuple[str, ...], folder: Path) -> Path:
    """Imports the few rows that a test has of benchmarks; returns the folder of all."""
    for name in names:
        rows = RowsConfig(path=str(write_benchmark(name, folder / "rows" / name)))
        import_questions(
            BENCHMARKS[name], ImportConfig(rows=rows, out=str(folder / "shards" / name)), count=0
        )
    return folder / "shards"


@pytest.mark.heavy
def test_benchmarks_are_asked_together_and_stand_beside_the_paper(
    tiny_hf: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Greedy and sampled ones of other lengths, with images and without, by one start of one engine."""
    root, out = import_small(NAMES, tmp_path), tmp_path / "out"
    words = ["eval", *NAMES, "--model", str(tiny_hf), "--root", str(root), "--out", str(out)]
    words += [*ENGINE, "--image.min_pixels", "784", "--sampling.max_tokens", "6"]
    assert main(words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out

    scores = load_scores(out)
    assert tuple(scores.benchmarks) == NAMES
    for name, found in scores.benchmarks.items():
        records = list(read_responses(out / name / "responses.jsonl", AskedResponse))
        questions = len(ROWS[name])
        assert (found.questions, len(records)) == (questions, questions * BENCHMARKS[name].n)
        assert not found.is_whole and not found.bad_questions and found.published_questions > questions
        assert all(1 <= record.response_len <= 6 for record in records)
        assert found.tokens == pytest.approx(sum(record.response_len for record in records) / len(records))
        assert {key: (each.published, each.used) for key, each in found.overrides.items()} == {
            "sampling.max_tokens": (49_152, 6)
        }
        length = read_json(out / name / "config.json")["engine"]["max_model_len"]
        assert length % 1_024 == 0 and 0 < length <= 4_096
    dynamath, aime, mmmu = scores.benchmarks.values()
    assert (dynamath.metric, dynamath.units, dynamath.by["subject"]["arithmetic"].count) == ("worst", 1, 1)
    assert (aime.metric, aime.n, mmmu.metric) == ("avg@8", 8, "accuracy")
    sampled = [r.response for r in read_responses(out / "aime24" / "responses.jsonl", AskedResponse)]
    assert len(set(sampled[:8])) > 1

    text = (out / "scores.md").read_text()
    assert "| OMR-7B | 34.9 | 27.1 | 57.8 | 54.3 |" in text
    assert "| Qwen2.5-VL-7B | 21.8 | 6.7 | 51.8† | 42.7 |" in text
    assert f"| **{tiny_hf}** | {100 * dynamath.value:.1f}* |" in text
    assert (
        "dynamath: 10 of 5,010 questions, sampling.max_tokens 6 for 49152" in text and "a judge about" in text
    )
    assert "| knowledge_level | worst |" in text and "dynamath" in printed and "34.9" in printed

    monkeypatch.setattr("rl.evaluation.collect.start_engines", None)  # nothing is asked again
    assert main([*words[:2], *words[4:]]) == 0, capsys.readouterr().err  # one benchmark; the others stay
    assert load_scores(out) == scores and (out / "scores.md").read_text() == text
    assert main([*words, "--image.max_pixels", "100000"]) == 2
    assert "image.max_pixels was 4194304, is 100000" in capsys.readouterr().err


def test_a_download_is_found_by_its_names(tmp_path: Path):
    benchmark = BENCHMARKS["mathvista_testmini"]
    with pytest.raises(ValueError, match="none of mathvista_testmini, AI4Math/MathVista, MathVista in it"):
        find_download(benchmark, tmp_path, is_only=False)
    assert find_download(benchmark, tmp_path, is_only=True) == tmp_path
    for name in ("MathVista", "AI4Math/MathVista", "mathvista_testmini"):
        (tmp_path / name).mkdir(parents=True)
        assert find_download(benchmark, tmp_path, is_only=True) == tmp_path / name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mathvista"], "no benchmark or recipe 'mathvista'; did you mean 'mathvista_testmini'?"),
        (["aime24", "aime26", "--model", "m"], "no benchmark 'aime26'; did you mean aime25 or aime24"),
        (["aime24"], "model is missing"),
        (["aime24", "--model", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_named_before_anything_is_read(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["eval", *words]) != 0
    assert said in capsys.readouterr().err


def test_settings_that_a_benchmark_cannot_have_name_it(
    tiny_hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["--model", str(tiny_hf), "--out", str(tmp_path / "out"), "--sampling.temperature", "0"]
    assert main(["eval", "aime24", *given]) == 2
    assert "aime24: sampling.n=8 must be 1 with sampling.temperature=0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shards_of_another_benchmark_are_refused(
    tiny_hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = import_small(("aime24",), tmp_path)
    (root / "aime24").rename(root / "amc23")
    given = ["--model", str(tiny_hf), "--root", str(root), "--out", str(tmp_path / "out")]
    assert main(["eval", "amc23", *given]) == 2
    assert "amc23 holds aime24, not amc23" in capsys.readouterr().err


def test_help_teaches_benchmarks_and_recipes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in ("demo", *GROUPS, *BENCHMARKS))
    assert "omr eval mathvista_testmini --model" in shown and "omr eval demo" in shown
