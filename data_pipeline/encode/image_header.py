"""Format and size of an image file, from its first bytes: no pixel is decoded."""

from __future__ import annotations

import io

from PIL import Image

from data_pipeline.errors import BadSample

MIME_TYPES = {"png": "image/png", "jpg": "image/jpeg"}
"""Of the formats that every vision model server accepts."""
_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def image_format(data: bytes) -> str:
    """Returns png, jpg, gif, webp or bmp by the file's signature, and "" for anything else."""
    return next((name for signature, name in _SIGNATURES.items() if data.startswith(signature)), "")


def image_size(data: bytes) -> tuple[int, int]:
    """Returns width and height; raises BadSample if it is no image, or so large that Pillow refuses it."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            return header.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSample("image", f"{len(data)} bytes are no image: {error}; fix or drop the file") from error
