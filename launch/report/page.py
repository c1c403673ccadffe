"""Renders one self-contained HTML page from templates/, with autoescape: whatever came from outside stays text.

The page's content policy allows only its own script to run, and nothing to be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from data_pipeline.encode.config import ImageConfig
from data_pipeline.files import atomic_writer
from data_pipeline.types import IMAGE_MARK
from launch.report.axes import NUM_COLORS, format_number
from launch.report.lines import line_style

TEMPLATES = Path(__file__).parent / "templates"
IMAGE_SIDE = 168
"""Longest side of a shown image, in CSS pixels; tiny images grow to it, at most threefold."""
STRIP = 9
"""Most frames of a video that are shown."""


class Tile(NamedTuple):
    """A large number at the top of a page."""

    value: str
    label: str
    detail: str


class Table(NamedTuple):
    """Rows of a name and cells."""

    label: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


class Figure(NamedTuple):
    """A chart, a table or both under a title."""

    name: str
    title: str
    caption: str
    chart: Markup = Markup()
    keys: Sequence[str] = ()  # names of the colours
    table: Table | None = None
    note: str = ""


class Section(NamedTuple):
    """Figures under a heading."""

    title: str
    intro: str
    figures: Sequence[Figure]


class ShownImage(NamedTuple):
    """An image of a question; without a source it could not be read."""

    alt: str
    source: str = ""  # a data address
    width: int = 0  # CSS pixels
    height: int = 0
    problem: str = ""


def png_image(data: bytes, alt: str = "image of the question", *, address: str = "") -> ShownImage:
    """Returns an image of the page from the bytes of a PNG file, which it holds unless they have an address."""
    with Image.open(io.BytesIO(data)) as header:
        sides = header.size
    scale = min(3.0, IMAGE_SIDE / max(sides))
    width, height = (max(1, round(side * scale)) for side in sides)
    source = address or f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return ShownImage(alt, source, width, height)


def draw_thumbnail(data: bytes, side: int) -> Image.Image:
    """Returns an image file drawn anew, at most `side` pixels wide and high; raises BadSample as load_image."""
    from data_pipeline.encode.images import load_image  # imports torch

    image = load_image(data, ImageConfig())
    image.thumbnail((side, side))
    return image


def draw_strip(frames: Sequence[bytes], side: int) -> bytes:
    """Returns a PNG file of a video: at most STRIP of its frames, evenly spread, row by row in their order.

    Raises:
        BadSample: one of them cannot be decoded.
    """
    chosen = [frames[i * len(frames) // STRIP] for i in range(STRIP)] if len(frames) > STRIP else frames
    columns = math.ceil(math.sqrt(len(chosen)))
    images = [draw_thumbnail(data, side // columns) for data in chosen]
    width, height = (max(sides) + 1 for sides in zip(*(image.size for image in images), strict=True))
    sheet = Image.new("RGB", (width * columns, height * math.ceil(len(images) / columns)), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def write_page(out: Path, template: str, *, title: str, **values: object) -> Path:
    """Fills the template, writes the page to `out` and returns the path; equal values give equal bytes."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        build_environment()
        .get_template(template)
        .render(title=title, script=Markup(script), script_hash=f"sha256-{digest}", **values)
    )
    with atomic_writer(out) as file:
        file.write(page.encode(errors="replace"))
    return out


def build_environment(*more: Path) -> Environment:
    """Returns what renders templates, with autoescape; those of the folders `more` come first."""
    environment = Environment(
        loader=FileSystemLoader([*more, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "slug": lambda title: title.lower().replace(" ", "-"),
        "color": lambda number: f"c{number % NUM_COLORS}",
        "line_style": line_style,
        "number": format_number,
        "shorten": shorten,
        "question": mark_images,
        "response": mark_tags,
    }
    return environment


def shorten(text: str, limit: int) -> str:
    """Returns at most `limit` characters, and how many were left out."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def mark_images(text: str) -> Markup:
    """Returns a user's text with image marks as small labels, without those at its start: the images stand there."""
    text = re.sub(rf"^(\s*{IMAGE_MARK})+", "", text).strip()
    return Markup('<span class="mark">image</span> ').join(text.split(IMAGE_MARK))


def mark_tags(text: str | None) -> Markup:
    """Returns a response of at most 2,000 characters with its <think> and <answer> tags set apart."""
    parts = re.split(r"(</?(?:think|answer)>)", shorten(text or "", 2_000))
    return Markup().join(Markup("<i>{}</i>").format(part) if i % 2 else part for i, part in enumerate(parts))
