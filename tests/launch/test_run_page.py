"""The report page: a realistic run with real shards, opened in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.report.run_page import write_report
from tests.helpers.browser import ParsedPage, contrast, open_page, text_colors, texts_outside
from tests.helpers.report_run import (
    HOSTILE,
    make_baseline,
    rl_row,
    sft_row,
    write_json,
    write_lines,
    write_run,
)

CHARTS = {
    "accuracy": {"chart-accuracy"},
    "data": {"chart-funnel", *(f"chart-funnel-published-{number}" for number in range(3))},
    "supervised-fine-tuning": {"chart-sft-loss", "chart-sft-grad-norm"},
    "reinforcement-learning": {
        *("chart-rl-reward", "chart-rl-held-out", "chart-rl-pass"),
        *("chart-rl-length", "chart-rl-outcomes", "chart-rl-truncated"),
        *("chart-rl-groups", "chart-rl-reflection"),
    },
    "policy-updates": {
        *("chart-rl-entropy", "chart-rl-clip", "chart-rl-ratio", "chart-rl-kl"),
        *("chart-rl-mismatch", "chart-rl-grad-norm", "chart-rl-failures"),
    },
    "speed": {"chart-rl-seconds", "chart-sft-tokens", "chart-rl-tokens", "chart-seconds"},
}


@pytest.mark.parametrize(
    ("changed", "claim"),
    [
        ({}, "No training sample has the text and images of one of the questions."),
        ({"questions_seen": 3}, "Training samples ask 3 of the questions"),
        ({"is_complete": False}, "None of the 24 training samples that were searched (not all)"),
        (None, "Whether training saw the questions was not searched"),
    ],
)
def test_page_claims_that_questions_are_unseen_only_where_it_was_searched(
    changed: dict[str, int] | None, claim: str, tmp_path: Path
):
    score = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    more = {} if changed is None else {"baseline": make_baseline(**changed)}
    write_json(tmp_path / "eval/sft/summary.json", score | more)
    page = write_report(tmp_path).read_text()
    assert claim in page and ("the model beats it" in page) == (changed is not None)
    assert ("answer to each question text" in page) == (changed is not None)


# --- in the browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("report") / "demo"))


def test_check_of_console_errors_can_fail(browser, tmp_path):
    """A page with an error has an error in the log."""
    broken = tmp_path / "broken.html"
    broken.write_text("<script>undefinedFunction()</script>")
    open_page(browser, broken)
    assert any("undefinedFunction" in entry["message"] for entry in browser.get_log("browser"))


def test_page_has_its_charts_and_images_and_no_error(browser, page):
    open_page(browser, page)
    found = browser.execute_script(
        "return [...document.querySelectorAll('section')].map(s => [s.id,"
        " [...s.querySelectorAll('figure')].filter(f => f.querySelector('svg')).map(f => f.id)])"
    )
    charts = {section: set(ids) for section, ids in found}
    assert charts == {**CHARTS, "rollouts": set()}
    widths = browser.execute_script("return [...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert len(widths) == 24 and min(widths) > 0
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.pwned") is None
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in urls if not url.startswith("data:")} == {page.as_uri()}


def test_tooltip_shows_the_step_under_the_pointer(browser, page):
    from selenium.webdriver import ActionChains

    open_page(browser, page)
    chart = browser.find_element("css selector", "#chart-rl-reward svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    ActionChains(browser).move_to_element(chart).perform()
    text = browser.find_element("id", "tip").text
    step = int(re.match(r"step (\d+)\n", text)[1])
    assert f"accuracy {rl_row(step)['reward_accuracy']:.3g} " in text
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [360, 480, 1280])
def test_texts_stay_in_their_boxes(browser, page, width):
    open_page(browser, page, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert texts_outside(browser) == []
    overlaps = browser.execute_script("""
        return [...document.querySelectorAll('svg')].flatMap(svg => {
          const texts = [...svg.querySelectorAll('text')], boxes = texts.map(t => t.getBoundingClientRect());
          return texts.flatMap((a, i) => texts.slice(i + 1).filter((b, k) => {
            const p = boxes[i], q = boxes[i + 1 + k];
            return p.left < q.right && q.left < p.right && p.top + 4 < q.bottom && q.top + 4 < p.bottom;
          }).map(b => a.textContent + ' | ' + b.textContent));
        })""")
    assert overlaps == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(browser, page, scheme):
    """WCAG AA: 4.5 to 1 for every text of a chart and of the page, on the card that it stands on."""
    open_page(browser, page, scheme=scheme)
    pairs = text_colors(browser)
    assert len(pairs) > 200
    worst = min((contrast(front, back), front, back) for front, back in {tuple(pair) for pair in pairs})
    assert worst[0] >= 4.5, worst


# --- without a browser


def test_numbers_of_the_run_are_on_the_page(page):
    text = ParsedPage(page).text
    assert "120 steps of supervised fine-tuning and 60 steps of reinforcement learning. Held-out" in text
    assert "43.5% after SFT (95% CI 38.7 to 48.2), 67.2% after RL (95% CI 62.4 to 71.9)" in text
    assert "+23.7 points (95% CI +18.2 to +29.1), which excludes zero" in text
    assert "Of 402 questions: 95 turned right and 0 turned wrong" in text
    for step in (1, 13, 25, 31, 43, 55):  # six of the ten logged steps, first and last among them
        assert f"Step {step}" in text
    assert "torch 2.13.0" in text and "seed 42" in text


def test_outside_text_is_escaped(page):
    parsed = ParsedPage(page)
    assert parsed.tags.count("script") == 1 and HOSTILE in parsed.text
    assert "example.invalid" not in re.sub(r"&lt;.*?&gt;", "", page.read_text())


def test_the_same_run_gives_the_same_page(tmp_path):
    run = write_run(tmp_path / "demo")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()
    assert [path.name for path in run.iterdir() if "part" in path.name] == []


def test_sft_only_run_leaves_out_the_rest(tmp_path):
    """The folder of an SFT run itself, still running: the last line is half written."""
    write_lines(tmp_path / "metrics.jsonl", [sft_row(1), sft_row(2)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    parsed = ParsedPage(write_report(tmp_path))
    assert "chart-sft-loss" in parsed.ids and "reinforcement-learning" not in parsed.ids
    for note in (
        "No accuracy",
        "No reinforcement learning",
        "No rollouts",
        "metrics.jsonl: 1 unreadable line was",
    ):
        assert note in parsed.text
    assert "2 steps of supervised fine-tuning" in parsed.text


def test_validation_loss_is_drawn_beside_that_of_training_as_it_was_measured(tmp_path):
    """A smoothed line would end at the mean of its last points."""
    rows = [
        sft_row(step) | ({"validation_loss": 2.5 - step / 10} if step % 3 == 0 else {}) for step in range(10)
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    page = write_report(tmp_path).read_text()
    assert re.search(r">training [\d.]+<", page) and ">validation 1.6<" in page


def test_each_held_out_benchmark_has_a_line_of_the_number_that_tables_print(tmp_path):
    names = ("dynamath/worst", "dynamath/average", "amc23/avg@8", "amc23/accuracy")
    rows = [rl_row(step) for step in range(4)]
    for place in (0, 2):
        rows[place] |= {f"held_out/{name}": 0.1 + place / 10 for name in names}
    write_lines(tmp_path / "metrics.jsonl", rows)
    page = write_report(tmp_path).read_text()
    assert "chart-rl-benchmarks" in page and page.count(">Held-out benchmarks<") == 1
    assert ">dynamath worst 0.3<" in page and ">amc23 avg@8 0.3<" in page and "average 0.3<" not in page


def test_rl_run_without_its_shards_has_placeholders(tmp_path):
    run = write_run(tmp_path / "demo")
    shutil.rmtree(run / "shards")
    parsed = ParsedPage(write_report(run / "rl"))
    assert {"chart-rl-reward", "rollouts"} <= parsed.ids and "chart-sft-loss" not in parsed.ids
    assert "img" not in parsed.tags and "not readable" not in parsed.tags
    assert "images of 24 of 24 shown questions could not be read" in parsed.text


def test_values_that_are_not_finite_are_counted_below_the_chart(tmp_path):
    write_lines(tmp_path / "sft/metrics.jsonl", [sft_row(1), sft_row(2) | {"loss": float("nan")}])
    assert "Not drawn: 1 values that are not finite" in ParsedPage(write_report(tmp_path)).text


def test_demo_with_several_algorithms_shows_them_side_by_side(tmp_path):
    for stage in ("rl", "rl_dapo"):
        write_json(tmp_path / stage / "config.json", {"steps": 2})
        write_lines(tmp_path / stage / "metrics.jsonl", [rl_row(0), rl_row(1)])
    parsed = ParsedPage(write_report(tmp_path))
    assert {"algorithms-side-by-side", "chart-compare-reward", "chart-rl-reward"} <= parsed.ids
    assert parsed.text.count("DAPO 0.") >= 4, "a line in each chart bears its name"
    shutil.rmtree(tmp_path / "rl_dapo")
    assert "algorithms-side-by-side" not in ParsedPage(write_report(tmp_path)).ids


def test_parts_of_the_reward_are_shown_by_whatever_name_and_failures_only_where_there_are_some(tmp_path):
    row = rl_row(1) | {"reward_shortness": 0.3, "reward_errors": 0, "reward_errors_shortness": 0}
    write_lines(tmp_path / "metrics.jsonl", [row])
    parsed = ParsedPage(write_report(tmp_path))
    assert "shortness 0.3" in parsed.text and "errors" not in parsed.text
    assert "chart-rl-failures" not in parsed.ids
    write_lines(tmp_path / "metrics.jsonl", [row | {"reward_errors": 2}])
    assert "chart-rl-failures" in ParsedPage(write_report(tmp_path)).ids


def test_difference_that_includes_zero_is_reported_as_none(tmp_path):
    stage = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
    gain = {"value": 0.01, "ci95": [-0.03, 0.05]}
    write_json(tmp_path / "summary.json", {"sft": stage, "rl": stage, "difference": gain})
    assert "contains zero: this run shows no difference" in ParsedPage(write_report(tmp_path)).text


def test_import_needs_neither_torch_nor_matplotlib():
    code = "import sys, launch.report.run_page; print(sorted({'torch', 'matplotlib', 'webdataset'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "[]"
