"""`omr data inspect`: samples of a folder of shards on one page, with their images, and statistics of the folder.

Images are drawn anew, small: no byte of a file in the shards reaches the page.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from data_pipeline.encode.config import ImageConfig
from data_pipeline.errors import BadSample
from data_pipeline.shards.config import InspectConfig
from data_pipeline.shards.survey import Survey, hint_small_images, survey
from data_pipeline.types import Sample, Video
from launch.report.axes import format_number
from launch.report.charts import draw_bars
from launch.report.page import (
    IMAGE_SIDE,
    Figure,
    Section,
    ShownImage,
    Tile,
    draw_strip,
    draw_thumbnail,
    png_image,
    shorten,
    write_page,
)

MAX_SOURCES = 12
MAX_BROKEN = 10
MAX_TEXT = 20_000
"""Characters of a question that are shown."""
SIDES = (256, 512, 1024, 2048)
"""Images are counted by their area, between the squares of these sides."""


def write_gallery(config: InspectConfig) -> Path:
    """Writes the page and returns its path; the same folder and seed give the same bytes.

    Raises:
        ValueError: there is no index, or no sample.
    """
    found = survey(config)
    name = Path(config.shards).name or config.shards
    more = len(found.broken) - MAX_BROKEN
    notes = [*found.broken[:MAX_BROKEN], *([f"and {more} more"] if more > 0 else [])]
    return write_page(
        Path(config.out),
        "samples.html",
        title=f"{name} · samples",
        name=name,
        tiles=_tiles(found),
        notes=[*filter(None, [_hint(found)]), *(["Not readable:", *notes] if notes else [])],
        numbers=Section("Numbers", _basis(found), _figures(found)),
        drawn=f"{len(found.shown)} samples drawn with seed {config.seed}, in the order of the folder.",
        cards=[_card(sample) for sample in found.shown],
        shards=config.shards,
        digest=found.digest,
    )


def _tiles(found: Survey) -> list[Tile]:
    in_shards = f"in {found.shards:,} shard{'s' * (found.shards != 1)}"
    each = f"{_size(found.bytes / found.samples)} a sample"
    return [
        Tile(f"{found.samples:,}", "samples", in_shards),
        Tile(_size(found.bytes), "on disk", each),
        Tile(_share(found.text_only, found), "text only", "without an image"),
        Tile(_share(found.unanswered, found), "without an answer", "to verify against"),
    ]


def _hint(found: Survey) -> str:
    hint = hint_small_images(found.image_sizes, ImageConfig())
    return hint and f"{hint[0].upper()}{hint[1:]}."


def _basis(found: Survey) -> str:
    if found.looked_at == found.samples:
        return "Counted over all samples."
    return f"Counted over {found.looked_at:,} samples, drawn at random from {found.samples:,}."


def _figures(found: Survey) -> list[Figure]:
    if not found.looked_at:
        return []
    sources = list(found.sources.items())
    rest = sum(count for _, count in sources[MAX_SOURCES:])
    rows = [*sources[:MAX_SOURCES], *([("others", rest)] if rest else [])]
    mean = sum(found.tokens) / found.looked_at
    tokens = f"Of text and images, estimated. Mean {mean:,.0f}, most {max(found.tokens):,}."
    by_tokens = _bars("Samples by estimated tokens", _by_tokens(found.tokens))
    figures = [
        Figure("sources", "Sources", "Samples by corpus.", _bars("Samples by corpus", rows)),
        Figure("tokens", "Tokens", tokens, by_tokens),
    ]
    if found.image_sizes:
        width, height = max(found.image_sizes, key=math.prod)
        caption = f"Images by area in pixels. The largest has {width:,} × {height:,}."
        chart = _bars("Images by area", _by_area(found.image_sizes))
        figures.append(Figure("images", "Image sizes", caption, chart))
    return figures


def _bars(label: str, rows: Sequence[tuple[str, float]]) -> Markup:
    return draw_bars(label, [(name, value, format_number(value)) for name, value in rows])


def _by_tokens(tokens: Sequence[int]) -> list[tuple[str, int]]:
    """Returns the samples by powers of two, from the smallest to the largest."""
    counts = Counter(max(n, 1).bit_length() for n in tokens)
    return [
        (f"{1 << (bits - 1):,} to {(1 << bits) - 1:,}", counts[bits])
        for bits in range(min(counts), max(counts) + 1)
    ]


def _by_area(sizes: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    counts = Counter(bisect_right([side * side for side in SIDES], math.prod(size)) for size in sizes)
    names = [f"below {SIDES[0]}²", *(f"from {side}²" for side in SIDES)]
    return [(names[number], counts[number]) for number in range(min(counts), max(counts) + 1)]


def _share(count: int, found: Survey) -> str:
    return f"{count / found.looked_at:.0%}" if found.looked_at else "–"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1_000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1_000
    return f"{num_bytes:,.1f} TB"


def _card(sample: Sample) -> dict[str, object]:
    """Returns what the template shows of a sample: the first question with its images, then the other turns."""
    asked = next((turn for turn in sample.messages if turn.role == "user"), None)
    return {
        "sample": sample,
        "images": show_images(sample),
        "question": shorten(asked.content, MAX_TEXT) if asked else "",
        "turns": [turn for turn in sample.messages if turn is not asked],
    }


def show_images(sample: Sample) -> list[ShownImage]:
    """Returns the images of a sample, drawn anew, then a strip of frames of each of its videos."""
    return [
        *(_image(data, number, len(sample.images)) for number, data in enumerate(sample.images, 1)),
        *(_strip(video, number) for number, video in enumerate(sample.videos, 1)),
    ]


def _strip(video: Video, number: int) -> ShownImage:
    try:
        data = draw_strip(video.frames, 2 * IMAGE_SIDE)
    except BadSample as error:
        return ShownImage(f"video {number}", problem=f"a frame of video {number}: {error}")
    return png_image(data, f"{len(video.frames)} frames of video {number}, {video.seconds[-1]:.1f} seconds")


def _image(data: bytes, number: int, count: int) -> ShownImage:
    try:
        image = draw_thumbnail(data, 2 * IMAGE_SIDE)
    except BadSample as error:
        return ShownImage(f"image {number}", problem=str(error))
    file = io.BytesIO()
    image.save(file, "PNG")
    return png_image(file.getvalue(), f"image {number} of {count} of the question")
