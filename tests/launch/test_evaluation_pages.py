"""Pages about evaluations: the command, what the page holds, and hostile text on it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from launch.cli import main
from launch.report.charts import Interval
from launch.report.evaluations.points import Series, draw_points
from rl.types import AskedResponse
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


def test_report_sorts_failures_and_sweeps_budgets(
    tiny_hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    samples = list(digit_samples("test", 6, 0))
    write_shards(samples, tmp_path / "shards")
    records = make_records(
        {sample.id: [float(n % 2)] for n, sample in enumerate(samples)}, source="mathverse_testmini"
    )
    records[0] = replace(records[0], response=f"{HOSTILE} \\boxed{{7}} <answer>8</answer>")
    records[2] = replace(records[2], finish_reason="length")
    records[4] = AskedResponse(
        id=records[4].id, source=records[4].source, answer="7", fault=f"image: {HOSTILE}"
    )
    folder = write_evaluation(tmp_path / "eval", records, shards=tmp_path / "shards")
    words = ["report", str(folder), "--budgets", "3", "40", "--model", str(tiny_hf)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "limit  accuracy" in out and str(folder / "report.html") in out
    points = json.loads((folder / "budgets.json").read_text())["mathverse_testmini"]["points"]
    assert [(p["budget"], p["score"]["accuracy"]) for p in points] == [(3, 0.0), (40, 0.5), (64, 0.5)]
    page = ParsedPage(folder / "report.html")
    assert {"misread", "truncated", "could-not-be-asked", "chart-budgets-mathverse_testmini"} <= page.ids
    assert not {"wrong", "hedged", "not-checked", "no-answer"} & page.ids
    assert page.tags.count("article") == 3 and page.tags.count("img") == 3 and page.tags.count("script") == 1
    assert "Of 5 responses, those that are not right. 1 of 6 questions could not be asked" in page.text
    assert "1 (20.0%)" in page.text and "1 (16.7%)" in page.text
    assert "OMR-7B, paper" in page.text and "another checkpoint" in page.text
    first = (folder / "report.html").read_bytes()
    assert main(words) == 0 and (folder / "report.html").read_bytes() == first
    assert (
        main(words[:-2]) == 2 and "has none; give the model's folder with --model" in capsys.readouterr().err
    )


def test_dots_with_intervals_are_where_the_axes_say():
    def dot(value: float) -> Interval:
        return Interval(value=value, low=value - 0.1, high=value + 0.1)

    series = [
        Series(name="a", points=((0.0, dot(0.2)),)),
        Series(name="b", points=((100.0, dot(0.4)), (200.0, dot(0.8)))),
    ]
    chart = str(draw_points("label", series, "tokens"))
    places = [tuple(map(float, each)) for each in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (left, low), (middle, mid), (right, high) = places
    assert middle - left == pytest.approx(right - middle, abs=0.2) and low - mid == pytest.approx(
        (mid - high) / 2, abs=0.2
    )
    wide = str(
        draw_points("label", [Series(name="c", points=tuple((2.0**n, dot(0.5)) for n in range(10)))], "limit")
    )
    xs = [float(each) for each in re.findall(r'cx="([\d.]+)"', wide)]
    gaps = {round(b - a, 0) for a, b in pairwise(xs)}
    assert len(gaps) == 1, "a logarithmic axis"


@pytest.mark.heavy
def test_comparison_is_safe_and_stays_in_its_boxes(sides: tuple[Path, Path], tmp_path: Path, browser):
    assert main(["compare", *map(str, sides), "--out", str(tmp_path / "page.html")]) == 0
    for width in (360, 1280):
        open_page(browser, tmp_path / "page.html", width=width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert texts_outside(browser) == []
    assert browser.execute_script("return window.pwned") is None and browser.get_log("browser") == []
