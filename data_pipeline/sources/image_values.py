"""Reads the file of an image from the value that a row holds it as."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from data_pipeline.encode.image_header import image_format, image_size
from data_pipeline.errors import BadSample, column_error


def read_image(value: object, folder: Path | None) -> bytes:
    """Returns the bytes of an image file, untouched: from bytes, {bytes, path}, {url}, a data URL, a path, file:///path.

    Raises:
        BadSample: it is none of these, cannot be read, lies outside `folder`, is no image, or has several pages.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, str):
        data = _from_data_url(value) if value.startswith("data:") else _from_path(value, folder)
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


def _from_data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadSample("image", f"{head[:40]!r} is not a base64 data URL; write data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:  # also a character outside ASCII
        raise BadSample("image", f"the data URL is not base64 ({error}); encode the file again") from error


def _from_file_url(url: str) -> str:
    """Returns the path of file:///path or file:path; raises BadSample for one on another machine."""
    path, machine = url[len("file:") :], ""
    if path.startswith("//"):
        machine, slash, rest = path[2:].partition("/")
        path = slash + rest
    if machine not in ("", "localhost"):
        detail = f"{url[:200]!r} names the machine {machine!r}; write file:///PATH, or a path without file:"
        raise BadSample("image", detail)
    return unquote(path)


def _from_path(name: str, folder: Path | None) -> bytes:
    if name.lower().startswith("file:"):
        name = _from_file_url(name)
    if "://" in name:
        raise BadSample(
            "image", f"{name[:200]} is an address, which is not fetched; download it, give its path"
        )
    if folder is None:
        raise BadSample("image", f"{name!r} is a path; set rows.images to the folder that it is relative to")
    try:
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()):
            return path.read_bytes()
    except OSError as error:
        raise BadSample(
            "image", f"cannot read {folder / name}: {error}; is rows.images the right folder?"
        ) from error
    except ValueError as error:  # a null character, or half a surrogate pair
        raise BadSample("image", f"{name!r} is not a path ({error}); fix or drop the row") from error
    raise BadSample("image", f"{name!r} leads out of {folder}; put the file into the image folder")
