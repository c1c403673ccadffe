"""Pages about evaluations: the command, what the page holds, and hostile text on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from launch.cli import main
from tests.helpers.browser import ParsedPage, open_page, texts_outside
from tests.helpers.evaluations import make_records, write_evaluation
from tests.helpers.report_run import HOSTILE


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two evaluations of 12 questions with images: three turned right, one turned wrong, with a hostile response."""
    folder = tmp_path_factory.mktemp("evaluations")
    samples = list(digit_samples("test", 12, 0))
    write_shards(samples, folder / "shards")
    old = {sample.id: [float(n % 2)] for n, sample in enumerate(samples)}
    new = old | {samples[n].id: [float(n != 1)] for n in (0, 1, 2, 4)}
    for name, accuracies in (("old", old), ("new", new)):
        records = [replace(r, response=f"{r.response}{HOSTILE}") for r in make_records(accuracies)]
        write_evaluation(folder / name, records, shards=folder / "shards")
    return folder / "old", folder / "new"


def test_compare_prints_the_table_and_writes_numbers_and_page(
    sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [*map(str, sides), "--out", str(tmp_path / "page.html"), "--json", str(tmp_path / "numbers.json")]
    assert main(["compare", *words]) == 0
    out = capsys.readouterr().out
    assert "new against old:" in out and "50.0%  66.7%  +16.7 [" in out and str(tmp_path / "page.html") in out
    (found,) = json.loads((tmp_path / "numbers.json").read_text())
    assert len(found["benchmarks"]["digits"]["gained"]) == 3 and found["mean"] is None
    page = ParsedPage(tmp_path / "page.html")
    assert {"chart-accuracy", "new-against-old", "new-turned-right", "new-turned-wrong"} <= page.ids
    assert page.tags.count("article") == 4 and page.tags.count("img") == 4
    assert "window.pwned=1" in page.text and page.tags.count("script") == 1
    first = (tmp_path / "page.html").read_bytes()
    assert main(["compare", *words]) == 0 and (tmp_path / "page.html").read_bytes() == first


def test_one_evaluation_and_numbers_of_runs_are_refused(
    sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", str(sides[0])]) == 2
    assert "is one evaluation; give the one to compare it with" in capsys.readouterr().err
    assert main(["compare", str(tmp_path), "--json", str(tmp_path / "x.json")]) == 2
    assert "holds the numbers of evaluations" in capsys.readouterr().err


@pytest.mark.heavy
def test_comparison_is_safe_and_stays_in_its_boxes(sides: tuple[Path, Path], tmp_path: Path, browser):
    assert main(["compare", *map(str, sides), "--out", str(tmp_path / "page.html")]) == 0
    for width in (360, 1280):
        open_page(browser, tmp_path / "page.html", width=width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert texts_outside(browser) == []
    assert browser.execute_script("return window.pwned") is None and browser.get_log("browser") == []
