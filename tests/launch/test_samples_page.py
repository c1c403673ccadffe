"""The page of samples: real shards with hostile texts and broken images, opened in headless Chromium."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.shards.config import InspectConfig, ShardConfig
from data_pipeline.shards.index import ShardIndex
from data_pipeline.shards.survey import MAX_DRAWN, survey
from data_pipeline.shards.writer import write_shards
from data_pipeline.sources.digits import digit_samples
from data_pipeline.types import Message, Sample
from launch import cli
from launch.report.samples_page import write_gallery
from tests.helpers.broken_shards import png_bomb
from tests.helpers.browser import contrast, open_page, text_colors, texts_outside
from tests.helpers.report_run import HOSTILE


def text_sample(number: int, text: str = "Why?", *, source: str = "texts", answer: str = "") -> Sample:
    turns = (Message(role="user", content=text), Message(role="assistant", content=f"Because. {text} " * 200))
    return Sample(id=f"{source}/{number}", source=source, messages=turns, answer=answer)


def samples() -> list[Sample]:
    digits = list(digit_samples("train", 12, 0))
    photo = io.BytesIO()
    Image.effect_noise((1_600, 1_100), 90).convert("RGB").save(photo, "JPEG")
    hostile = replace(
        digits[0],
        id=f"hostile/{HOSTILE}",
        source=HOSTILE,
        messages=tuple(replace(turn, content=turn.content + HOSTILE) for turn in digits[0].messages),
        answer=HOSTILE,
        metadata={HOSTILE: HOSTILE, "number": 7},
    )
    broken = replace(digits[1], id="broken/1", images=(b"<script>", png_bomb(), photo.getvalue()))
    return [*digits[2:], hostile, broken, *(text_sample(number) for number in range(3))]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    write_shards(samples(), folder / "shards", ShardConfig(samples_per_shard=4))
    return write_gallery(InspectConfig(shards=str(folder / "shards"), out=str(folder / "page.html")))


# --- in the browser


def test_page_shows_samples_with_images_and_runs_none_of_their_scripts(browser, page):
    open_page(browser, page)
    assert len(browser.find_elements("css selector", ".card")) == 15
    widths = browser.execute_script("return [...document.images].map(i => i.complete ? i.naturalWidth : 0)")
    assert len(widths) == 12 and min(widths) > 0 and max(widths) <= 336
    assert [e.text for e in browser.find_elements("css selector", ".lost")] == [
        "image 1\nnot readable",
        "image 2\nnot readable",
    ]
    alts = browser.execute_script("return [...document.images].map(i => i.alt)")
    assert "image 3 of 3 of the question" in alts and all(alts)
    charts = browser.execute_script("return [...document.querySelectorAll('figure')].map(f => f.id)")
    assert charts == ["chart-sources", "chart-tokens", "chart-images"]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.pwned") is None
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in urls if not url.startswith("data:")} == {page.as_uri()}


@pytest.mark.parametrize("width", [360, 480, 1280])
def test_texts_stay_in_their_boxes(browser, page, width):
    open_page(browser, page, width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert texts_outside(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(browser, page, scheme):
    open_page(browser, page, scheme=scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    pairs = text_colors(browser)
    assert len(pairs) > 100
    assert min(contrast(front, back) for front, back in {tuple(pair) for pair in pairs}) >= 4.5


def test_long_texts_can_be_scrolled_with_the_keyboard(browser, page):
    from selenium.webdriver import Keys

    open_page(browser, page)
    longest = max(
        browser.find_elements("css selector", ".turn p"), key=lambda p: int(p.get_property("scrollHeight"))
    )
    assert int(longest.get_property("scrollHeight")) > int(longest.get_property("clientHeight"))
    longest.send_keys(Keys.END)
    assert browser.execute_async_script(
        "setTimeout(() => arguments[1](arguments[0].scrollTop > 0), 600)", longest
    )
    named = browser.execute_script(
        "return [...document.querySelectorAll('[tabindex]')].every(e => e.ariaLabel)"
    )
    assert named


# --- without a browser


def test_outside_text_is_escaped_and_numbers_are_on_the_page(page):
    text = page.read_text()
    assert text.count("<script>") == 1 and "&lt;script&gt;window.pwned=1" in text
    assert "example.invalid" not in re.sub(r"&lt;.*?&gt;", "", text)
    assert "<b>15</b>samples<span>in 4 shards" in text and "<b>20%</b>text only" in text
    assert "<b>20%</b>without an answer" in text, "the three texts"
    assert "The largest has 30,000 × 30,000" not in text and "The largest has 1,600 × 1,100" in text


def test_no_byte_of_a_file_reaches_the_page(page):
    """Thumbnails are drawn anew: what hides in a file's metadata stays there."""
    shown = re.findall(r"data:image/png;base64,([^\"]+)", page.read_text())
    files = {image for sample in samples() for image in sample.images}
    assert shown and not files & {base64.b64decode(data) for data in shown}


def test_page_depends_on_the_seed_alone(tmp_path):
    write_shards(
        (text_sample(number) for number in range(60)), tmp_path / "s", ShardConfig(samples_per_shard=7)
    )

    def page(seed: int) -> str:
        config = InspectConfig(shards=str(tmp_path / "s"), samples=5, seed=seed, out=str(tmp_path / "p.html"))
        return write_gallery(config).read_text()

    assert page(0) == page(0) != page(1)
    assert page(0).count('<article class="card">') == 5
    assert len(list(tmp_path.iterdir())) == 2, "nothing but the page is left"


def test_statistics_of_a_large_folder_are_drawn(tmp_path):
    mixed = (
        text_sample(number, source=("a", "a", "b")[number % 3], answer="4" if number % 2 else "")
        for number in range(3_000)
    )
    write_shards(mixed, tmp_path)
    found = survey(InspectConfig(shards=str(tmp_path), samples=3))
    assert found.looked_at == MAX_DRAWN and found.samples == 3_000 and len(found.shown) == 3
    assert abs(found.sources["a"] / found.looked_at - 2 / 3) < 0.05
    assert abs(found.unanswered / found.looked_at - 1 / 2) < 0.05


def test_unreadable_samples_are_named(tmp_path):
    index = write_shards(samples(), tmp_path / "s", ShardConfig(samples_per_shard=4))
    path = tmp_path / "s" / index.shards[1].file
    path.write_bytes(path.read_bytes()[: index.rows(1).offsets[3]])
    page = write_gallery(InspectConfig(shards=str(tmp_path / "s"), out=str(tmp_path / "p.html"))).read_text()
    assert page.count('<article class="card">') == 14
    assert "Not readable:" in page and ShardIndex.load(tmp_path / "s")[7].id in page


def test_command_writes_the_page_or_explains_the_mistake(tmp_path, capsys):
    write_shards([text_sample(0)], tmp_path / "s")
    out = tmp_path / "deep" / "page.html"
    assert cli.main(["data", "inspect", str(tmp_path / "s"), "--out", str(out), "--samples", "2"]) == 0
    assert capsys.readouterr().out.strip() == str(out) and "Why?" in out.read_text()
    assert cli.main(["data", "inspect", str(tmp_path / "none")]) == 2
    assert "index.json does not exist" in capsys.readouterr().err
    write_shards([], tmp_path / "empty")
    assert cli.main(["data", "inspect", str(tmp_path / "empty")]) == 2
    assert "holds no samples" in capsys.readouterr().err
