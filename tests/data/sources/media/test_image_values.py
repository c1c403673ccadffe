"""An image is read from every form in which a row may hold it, and a wrong one is refused with a hint."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from data_pipeline.errors import BadSample
from data_pipeline.sources.media.image_values import read_image
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
        PATH.resolve().as_uri(),
        {"url": "file://localhost" + str(PATH.resolve())},
        "file:triangle.png",
        "file:tri%61ngle.png",
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
        ("file:///etc/hostname", "leads out of"),
        ("file:../llava_cot.jsonl", "leads out of"),
        ("file://images/a.png", "names the machine 'images'; write file:///PATH"),
        ("file:///missing/../../a.png", "leads out of"),
        ("file://[a", "names the machine"),
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


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
def test_an_image_of_several_pages_is_refused_and_one_of_one_page_read(kind: str):
    pages = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    for count in (1, 2):
        file = io.BytesIO()
        pages[0].save(file, kind, save_all=count > 1, append_images=pages[1:count])
        if count == 1:
            assert read_image(file.getvalue(), None) == file.getvalue()
            continue
        with pytest.raises(BadSample, match="several pages or frames, of which one would be used"):
            read_image(file.getvalue(), None)


def test_path_without_a_folder_is_refused_with_a_hint():
    with pytest.raises(BadSample, match="set rows.images to the folder"):
        read_image("a.png", None)
