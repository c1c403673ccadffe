"""Format, size and orientation of an image file, from its first bytes: no pixel is decoded."""

from __future__ import annotations

import io
import struct

from PIL import ExifTags, Image, UnidentifiedImageError

from data_pipeline.errors import BadSample

MIME_TYPES = {"png": "image/png", "jpg": "image/jpeg"}
"""Of the formats that every vision model server accepts."""
_SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
_HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the image upright; from 5 on width and height change places."""
_BAD_TAGS = (SyntaxError, ValueError, TypeError, LookupError, AttributeError, OSError, struct.error)
"""What Pillow raises for EXIF tags that it cannot parse."""


def image_format(data: bytes) -> str:
    """Returns png, jpg, gif, webp or bmp by the file's signature, and "" for anything else."""
    found = next((name for signature, name in _SIGNATURES.items() if data.startswith(signature)), "")
    return (
        "" if found == "webp" and data[8:12] != b"WEBP" else found
    )  # sound (WAV) and video (AVI) are RIFF too


def image_size(data: bytes) -> tuple[int, int]:
    """Returns width and height, upright; raises BadSample if it is no image, or so large that Pillow refuses it."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
            # without "exif", Pillow would decode a PNG to look behind its pixels; a TIFF's size is upright already
            turn = read_turn(header) if "exif" in header.info else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "of no format that is known" if isinstance(error, UnidentifiedImageError) else error
        is_heic = data[4:12] in _HEIC
        cause = "a HEIC photo; convert it to JPEG" if is_heic else f"no image: {reason}; fix or drop the file"
        raise BadSample("image", f"{len(data)} bytes are {cause}") from error
    return (height, width) if turn in [*_TURNS.values()][3:] else (width, height)


def read_turn(image: Image.Image) -> Image.Transpose | None:
    """Returns what makes an opened image upright; None where its EXIF says nothing, or cannot be parsed.

    A photograph with broken tags loses its orientation, not its pixels. `ImageOps.exif_transpose` writes the tags
    again, which fails for many that can be read.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _BAD_TAGS:
        return None
