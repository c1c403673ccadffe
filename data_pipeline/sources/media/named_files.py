"""Finds what a row names by a text: a file inside of the source's folder, or the bytes of a data URL."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from data_pipeline.errors import BadSample

Kind = Literal["image", "video"]
"""What is looked for: the reason of a bad row."""
_SHOWN = 200
"""Characters of a name that a message shows."""


def find_file(name: str, folder: Path | None, kind: Kind) -> Path:
    """Returns the file or folder of a path, also file:///path, relative to `folder`.

    Raises:
        BadSample: it is an address or no path, lies outside of `folder`, or does not exist.
    """
    if name.lower().startswith("file:"):
        name = _from_file_url(name, kind)
    shown = name[:_SHOWN]
    if "://" in name:
        raise BadSample(kind, f"{shown} is an address, which is not fetched; download it, give its path")
    if folder is None:
        raise BadSample(kind, f"{shown!r} is a path; set rows.images to the folder that it is relative to")
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise BadSample(kind, f"{shown!r} leads out of {folder}; put the file into that folder")
        path.stat()
    except OSError as error:
        detail = f"cannot read {folder / shown}: {error.strerror}; is rows.images the right folder?"
        raise BadSample(kind, detail) from error
    except BadSample:
        raise
    except ValueError as error:  # a null character, or half a surrogate pair
        raise BadSample(kind, f"{shown!r} is not a path ({error}); fix or drop the row") from error
    return path


def read_data_url(url: str, kind: Kind) -> bytes:
    """Returns the bytes of data:TYPE;base64,...; raises BadSample for another form."""
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadSample(kind, f"{head[:40]!r} is not a base64 data URL; write data:{kind}/TYPE;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:  # also a character outside ASCII
        raise BadSample(kind, f"the data URL is not base64 ({error}); encode the file again") from error


def _from_file_url(url: str, kind: Kind) -> str:
    """Returns the path of file:///path or file:path; raises BadSample for one on another machine."""
    path, machine = url[len("file:") :], ""
    if path.startswith("//"):
        machine, slash, rest = path[2:].partition("/")
        path = slash + rest
    if machine not in ("", "localhost"):
        detail = (
            f"{url[:_SHOWN]!r} names the machine {machine!r}; write file:///PATH, or a path without file:"
        )
        raise BadSample(kind, detail)
    return unquote(path)
