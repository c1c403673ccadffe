"""Formats and sizes come from the first bytes; what is no image is refused without decoding a pixel."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from data_pipeline.encode.image_header import MIME_TYPES, image_format, image_size
from data_pipeline.errors import BadSample
from tests.helpers.broken_shards import png_bomb


def encode(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "name"), [("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "bmp")]
)
def test_format_and_size_of_real_files(kind: str, name: str):
    data = encode(kind)
    assert image_format(data) == name and image_size(data) == (40, 30)


def test_other_formats_have_a_size_but_no_name():
    assert image_format(encode("TIFF")) == "" and image_size(encode("TIFF")) == (40, 30)


def test_formats_for_model_servers_are_png_and_jpeg():
    assert {MIME_TYPES.get(image_format(encode(kind))) for kind in ("PNG", "JPEG")} == {
        "image/png",
        "image/jpeg",
    }
    assert image_format(encode("GIF")) not in MIME_TYPES


def test_a_size_needs_the_header_alone():
    assert image_size(encode("PNG")[:60]) == (40, 30)


@pytest.mark.parametrize("data", [b"", b"what?", b"\x89PNG no image", b"\xff\xd8\xff"])
def test_bytes_that_are_no_image_are_refused(data: bytes):
    with pytest.raises(BadSample, match=f"image: {len(data)} bytes are no image"):
        image_size(data)


def test_a_heic_photo_is_named_as_such():
    with pytest.raises(BadSample, match="a HEIC photo; convert it to JPEG"):
        image_size(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_a_decompression_bomb_is_refused():
    with pytest.raises(BadSample, match="are no image"):
        image_size(png_bomb())
