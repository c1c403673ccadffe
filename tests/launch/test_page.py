"""The parts that all pages share: escaping, shortening, the content policy and images."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path

from PIL import Image

from data_pipeline.types import IMAGE_MARK
from launch.report.page import Section, mark_images, mark_tags, png_image, shorten, write_page
from tests.helpers.report_run import HOSTILE


def empty_page(out: Path, name: str) -> str:
    """Writes a page of samples without any and returns its text."""
    numbers = Section("Numbers", "None.", [])
    more = {
        "tiles": [],
        "notes": [],
        "numbers": numbers,
        "drawn": "",
        "cards": [],
        "shards": "",
        "digest": "",
    }
    return write_page(out, "samples.html", title=name, name=name, **more).read_text()


def test_policy_allows_the_page_s_own_script_alone(tmp_path: Path):
    page = empty_page(tmp_path / "page.html", HOSTILE)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert HOSTILE not in page and "&lt;script&gt;window.pwned=1" in page


def test_image_marks_become_labels_but_not_at_the_start():
    text = mark_images(f"{IMAGE_MARK}{IMAGE_MARK} Compare <b> with {IMAGE_MARK}.")
    assert text == 'Compare &lt;b&gt; with <span class="mark">image</span> .'


def test_tags_of_a_response_are_set_apart_and_others_escaped():
    assert mark_tags("<think>a<b</think>") == "<i>&lt;think&gt;</i>a&lt;b<i>&lt;/think&gt;</i>"
    assert mark_tags(None) == ""
    assert mark_tags("x" * 2_005).endswith(" … (5 more characters)")


def test_short_text_stays_as_it_is():
    assert shorten("abc", 3) == "abc" and shorten("abcd", 3) == "abc … (1 more characters)"


def test_small_images_grow_threefold_at_most():
    for side, shown in ((10, 30), (100, 168), (1_000, 168)):
        file = io.BytesIO()
        Image.new("RGB", (side, side // 2)).save(file, "PNG")
        image = png_image(file.getvalue())
        assert (image.width, image.height) == (shown, shown // 2)
