"""An image is read from every form in which a row may hold it, and a wrong one is refused with a hint."""

from __future__ import annotations

import base64
import re

import pytest

from data_pipeline.errors import BadSample
from data_pipeline.sources.image_values import read_image
from tests.helpers.corpora import IMAGES, TRIANGLE

PATH = IMAGES / "triangle.png"
URL = "data:image/png;base64," + base64.b64encode(TRIANGLE).decode()


@pytest.mark.parametrize(
    "value",
    [
        TRIANGLE,
        bytearray(TRIANGLE),
        {"bytes": None, "path": "triangle.png"},
        {"bytes": TRIANGLE, "path": "x"},
        {"url": URL},
        URL,
        "triangle.png",
        str(PATH.resolve()),
    ],
)
def test_file_is_returned_untouched(value: object):
    assert read_image(value, IMAGES) == TRIANGLE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://example.com/a.png", "which is not fetched"),
        ("../llava_cot.jsonl", "leads out of"),
        ("/etc/hostname", "leads out of"),
        ("missing.png", "is rows.images the right folder?"),
        ("a\0b.png", "is not a path"),
        ("\ud800.png", "is not a path"),
        (b"not an image", "no image"),
        ("data:image/png,abc", "not a base64 data URL"),
        ("data:image/png;base64,a$b", "not base64"),
        ("data:image/png;base64,ü", "not base64"),
        (TRIANGLE[:20], "no image"),
        ({"bytes": None, "path": None}, "saw nothing"),
        (7, "saw int 7"),
    ],
)
def test_wrong_image_is_refused_with_a_hint(value: object, message: str):
    with pytest.raises(BadSample, match=re.escape(message)) as caught:
        read_image(value, IMAGES)
    assert caught.value.reason in ("image", "schema")


def test_path_without_a_folder_is_refused_with_a_hint():
    with pytest.raises(BadSample, match="set rows.images to the folder"):
        read_image("a.png", None)
