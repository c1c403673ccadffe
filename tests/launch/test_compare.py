"""`omr compare`: seeds as bands, fields that differ, what is missing; the page opened in headless Chromium."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from launch.cli import main
from launch.recipes.rl import RL_RECIPES
from launch.report.compare import find_differences, group_seeds, load_runs, name_runs
from launch.report.compare_page import write_comparison
from launch.report.curves import REWARD
from launch.report.lines import LINE_COLORS, MAX_LINES, Line, draw_lines, line_style, smooth
from launch.report.page import TEMPLATES
from rl.config import RLConfig
from tests.helpers.browser import ParsedPage, contrast, open_page, text_colors, texts_outside
from tests.helpers.report_run import rl_row, write_json, write_lines

STEPS = 40


def write_rl_run(folder: Path, config: RLConfig, steps: int = STEPS, **more: float) -> Path:
    write_json(folder / "config.json", json.loads(json.dumps(asdict(config))))
    rows = [rl_row(step + config.seed) | more | {"step": step} for step in range(steps)]
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def recipe(name: str, seed: int = 42) -> RLConfig:
    return replace(RL_RECIPES[name](seed=seed), steps=STEPS)


def test_runs_that_differ_in_seed_and_folders_are_one_configuration(tmp_path: Path):
    paths = [
        write_rl_run(tmp_path / f"{name}-{seed}", replace(recipe(name, seed), model=f"models/{seed}"))
        for name in ("demo", "demo_grpo")
        for seed in (1, 2, 3)
    ]
    paths.append(write_rl_run(tmp_path / "again", recipe("demo_dapo", 1)))
    paths.append(write_rl_run(tmp_path / "same-seed", replace(recipe("demo_dapo", 1), model="models/other")))
    found = group_seeds(load_runs(paths, []))
    assert [(each.name, len(each.runs)) for each in found] == [
        ("demo-1 (3 seeds)", 3),
        ("demo_grpo-1 (3 seeds)", 3),
        ("again", 1),
        ("same-seed", 1),
    ], "runs of one seed from two models are no seeds of one configuration"
    differences = dict(find_differences(found[:2]))
    assert differences == {"algorithm.name": ["gspo", "grpo"], "algorithm.num_minibatches": ["1", "4"]}
    assert dict(find_differences(found[2:])) == {"model": ["runs/demo/sft/hf", "models/other"]}


def test_line_of_several_seeds_is_their_mean_and_range_while_all_last(tmp_path: Path):
    lengths = {1: STEPS, 2: 25, 3: STEPS}
    paths = [
        write_rl_run(tmp_path / str(seed), recipe("demo", seed), steps) for seed, steps in lengths.items()
    ]
    (configuration,) = group_seeds(load_runs(paths, []))
    line = configuration.line(REWARD, "reward", 0)
    single = [
        np.array([value for _, value in smooth([(s, rl_row(s + seed)["reward"]) for s in range(steps)])][:25])
        for seed, steps in lengths.items()
    ]
    assert [step for step, _ in line.points] == list(range(25))
    np.testing.assert_allclose([value for _, value in line.points], np.mean(single, axis=0))
    np.testing.assert_allclose([low for _, low, _ in line.band], np.min(single, axis=0))
    np.testing.assert_allclose([high for _, _, high in line.band], np.max(single, axis=0))


def test_names_are_the_shortest_ends_of_paths_that_differ(tmp_path: Path):
    folders = [tmp_path / name for name in ("a/demo/rl", "a/demo7/rl", "a/demo7/rl_dapo")]
    assert name_runs(folders) == ["demo/rl", "demo7/rl", "demo7/rl_dapo"]
    assert name_runs(folders[1:]) == ["rl", "rl_dapo"]


def test_demo_folder_stands_for_its_rl_runs(tmp_path: Path):
    for name, stage in (("demo", "rl"), ("demo_visurf", "rl_visurf"), ("demo_dapo", "rl_dapo")):
        write_rl_run(tmp_path / stage, recipe(name))
    write_json(tmp_path / "eval/rl_dapo/summary.json", {"accuracy": 0.5, "ci95": [0.4, 0.6]})
    runs = load_runs([tmp_path], [])
    assert [run.name for run in runs] == ["rl", "rl_dapo", "rl_visurf"]
    assert [run.score.value if run.score else None for run in runs] == [None, 0.5, None]


def test_pass_at_k_is_drawn_for_the_largest_k_and_the_largest_of_all(tmp_path: Path):
    for name, ks in (("eight", (1, 2, 4, 8)), ("sixteen", (1, 2, 4, 8, 16))):
        write_rl_run(tmp_path / name, recipe("demo"), steps=2, **{f"pass_at_{k}": 0.5 for k in ks})
    write_rl_run(tmp_path / "without", recipe("demo"), steps=2)
    paths = [tmp_path / name for name in ("eight", "sixteen", "without")]
    ids = ParsedPage(write_comparison(paths, tmp_path / "page.html")).ids
    charts = {name for name in ids if name.startswith("chart-compare-pass")}
    assert charts == {"chart-compare-pass-pass_at_8", "chart-compare-pass-pass_at_16"}


def test_page_names_what_is_missing(tmp_path: Path):
    paths = [
        write_rl_run(tmp_path / "whole", recipe("demo"), held_out_accuracy=0.5),
        write_rl_run(tmp_path / "short", recipe("demo_grpo"), steps=7),
    ]
    write_json(tmp_path / "started/config.json", json.loads(json.dumps(asdict(recipe("demo_dapo")))))
    write_lines(tmp_path / "bare/metrics.jsonl", [rl_row(1)])
    write_lines(tmp_path / "torn/metrics.jsonl", [rl_row(1)])
    (tmp_path / "torn/config.json").write_text('{"seed": 4')
    paths.append(tmp_path / "torn")
    with (tmp_path / "short/metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "rew')
    out = tmp_path / "page.html"
    assert (
        main(
            [
                "compare",
                *map(str, paths),
                str(tmp_path / "started"),
                str(tmp_path / "bare"),
                "--out",
                str(out),
            ]
        )
        == 0
    )
    text = ParsedPage(out).text
    for note in (
        f"short is unfinished: 7 of {STEPS} steps",
        "started has no steps in metrics.jsonl yet",
        "bare has no config.json",
        "torn/config.json is not readable and is left out",
        "1 unreadable line was skipped",
        "Not logged by short, torn, started, bare",
    ):
        assert note in text
    assert "whole is unfinished" not in text


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "no run is given"),
        (["gone"], "gone is not a folder"),
        (["empty"], "empty holds no run"),
        (["run", "run"], "run is given twice"),
        (["started"], "no run has a metrics.jsonl with steps"),
    ],
)
def test_mistakes_are_explained(
    words: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_rl_run(Path("run"), recipe("demo"), steps=2)
    write_json(Path("started/config.json"), {"steps": 3})
    assert main(["compare", *words]) == 2
    assert complaint in capsys.readouterr().err and not Path("compare.html").exists()


def test_too_many_configurations_are_refused(tmp_path: Path):
    paths = [
        write_rl_run(tmp_path / str(i), replace(recipe("demo"), prompts_per_step=i + 1), steps=2)
        for i in range(MAX_LINES + 1)
    ]
    with pytest.raises(ValueError, match="9 configurations are too many"):
        write_comparison(paths, tmp_path / "page.html")


# --- colours

CONFUSED = {
    # Machado, Oliveira and Fernandes 2009: linear RGB as seen without long, without middle and with all cones
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}


def to_lab(linear: np.ndarray) -> np.ndarray:
    """Returns CIE L*a*b* of linear sRGB."""
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.072175],
            [0.0193339, 0.119192, 0.9503041],
        ]
    )
    ratio = to_xyz @ np.clip(linear, 0, 1) / to_xyz.sum(axis=1)
    bent = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * bent[1] - 16, 500 * (bent[0] - bent[1]), 200 * (bent[1] - bent[2])])


@pytest.mark.parametrize("deficiency", CONFUSED)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_differ_for_readers_who_see_fewer_colours(scheme: str, deficiency: str):
    """Whole lines differ in colour, and so do dashed ones; 2.3 is a difference that one just sees."""
    css = (TEMPLATES / "style.css").read_text()
    values = re.findall(r"--c(\d): (#\w{6})", css)
    colors = dict(values[:6] if scheme == "light" else values[6:])
    assert len(values) == 12
    labs = []
    for number in LINE_COLORS:
        rgb = np.array([int(colors[str(number)][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        labs.append(to_lab(np.array(CONFUSED[deficiency]) @ linear))
    assert min(np.linalg.norm(a - b) for a, b in combinations(labs, 2)) > 20


def test_styles_of_lines_differ_and_belong_to_their_places():
    assert len({line_style(place) for place in range(MAX_LINES)}) == MAX_LINES
    lines = [
        Line(name=name, points=points, place=place)
        for name, points, place in (("first", (), 0), ("second", ((0, 1.0),), 1), ("last", ((0, 2.0),), 7))
    ]
    chart = str(draw_lines("chart", lines))
    assert 'class="smooth c1"' in chart and 'class="smooth c5 dashed"' in chart and "c0" not in chart


# --- in the browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight configurations, one of them of three seeds, with long names."""
    root = tmp_path_factory.mktemp("runs")
    names = ("demo", "demo_gspo_token", "demo_grpo", "demo_dapo", "demo_dr_grpo", "demo_cispo", "demo_sapo")
    paths = [write_rl_run(root / f"a-rather-long-name-of-{name}", recipe(name)) for name in names]
    quantiles = {
        "sequence_ratio_p01": 0.9998,
        "sequence_ratio_p99": 1.0003,
        "pass_at_8": 0.9,
        "held_out_accuracy": 0.4,
    }
    paths += [
        write_rl_run(root / f"visurf-{seed}", recipe("demo_visurf", seed), **quantiles) for seed in (1, 2, 3)
    ]
    return write_comparison(paths, root / "compare.html")


def test_page_has_its_charts_and_no_error(browser, page):
    open_page(browser, page)
    found = browser.execute_script(
        "return [...document.querySelectorAll('figure')].filter(f => f.querySelector('svg')).map(f => [f.id,"
        " f.querySelectorAll('path.smooth').length, f.querySelectorAll('path.band').length])"
    )
    charts = {name.removeprefix("chart-compare-"): (lines, bands) for name, lines, bands in found}
    everywhere = ("reward", "accuracy", "entropy", "length", "truncated", "clip", "mismatch", "grad-norm")
    once = ("held-out", "ratio-sequence_ratio_p01", "ratio-sequence_ratio_p99", "pass-pass_at_8")
    assert charts == dict.fromkeys(everywhere, (8, 1)) | dict.fromkeys(once, (1, 1))
    assert browser.get_log("browser") == []
    legend = browser.execute_script(
        "return [...document.querySelectorAll('.legend .key')].map(k => k.textContent)"
    )
    assert len(legend) == 8 and legend[-1] == "visurf-1 (3 seeds)"
    text = ParsedPage(page).text
    assert "algorithm.solution.enabled" in text and "10 runs" in text


def test_tooltip_shows_every_line_at_a_step(browser, page):
    from selenium.webdriver import ActionChains

    open_page(browser, page)
    chart = browser.find_element("css selector", "#chart-compare-reward svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    ActionChains(browser).move_to_element(chart).perform()
    lines = browser.find_element("id", "tip").text.splitlines()
    assert re.fullmatch(r"step \d+", lines[0]) and len(lines) == 1 + 8
    assert re.search(r"visurf-1 \(3 seeds\) [\d.]+ \([\d.]+ to [\d.]+\)", lines[-1])


@pytest.mark.parametrize("width", [360, 1280])
def test_texts_stay_in_their_boxes(browser, page, width):
    open_page(browser, page, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert texts_outside(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(browser, page, scheme):
    open_page(browser, page, scheme=scheme)
    pairs = {tuple(pair) for pair in text_colors(browser)}
    assert min(contrast(front, back) for front, back in pairs) >= 4.5
