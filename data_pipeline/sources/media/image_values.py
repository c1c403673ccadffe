"""Reads the file of an image from the value that a row holds it as."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from data_pipeline.encode.image_header import image_format, image_size
from data_pipeline.errors import BadSample, column_error
from data_pipeline.sources.media.named_files import find_file, read_data_url


def read_image(value: object, folder: Path | None) -> bytes:
    """Returns the bytes of an image file, untouched: from bytes, {bytes, path}, {url}, a data URL, a path, file:///path.

    Raises:
        BadSample: it is none of these, cannot be read, lies outside `folder`, is no image, or has several pages.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, str):
        data = read_data_url(value, "image") if value.startswith("data:") else _read_file(value, folder)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
    else:
        raise column_error("image", "bytes, {bytes, path}, a path or a data URL", value, "convert it")
    image_size(data)  # refuses what is not an image; the loader finds what is broken after the header
    if image_format(data) != "jpg" and _has_pages(data):
        raise BadSample(
            "image", "several pages or frames, of which one would be used; save the one that is meant"
        )
    return data


def _has_pages(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as file:
        try:
            file.seek(1)
        except (EOFError, OSError, SyntaxError, ValueError):
            return False
        return True


def _read_file(name: str, folder: Path | None) -> bytes:
    path = find_file(name, folder, "image")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSample("image", f"cannot read {path}: {error.strerror}; fix or drop the row") from error
