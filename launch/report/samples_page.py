"""`omr data inspect`: samples of a folder of shards on one page, with their images, and the folder in numbers.

Everything on a card came from data and is escaped here. Images are drawn anew, small: no byte of a file in the
shards reaches the page.
"""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from data_pipeline.encode.config import ImageConfig
from data_pipeline.errors import BadSample
from data_pipeline.shards.config import InspectConfig
from data_pipeline.shards.survey import Survey, survey
from data_pipeline.types import Message, Sample
from launch.report.charts import format_number, value_bars
from launch.report.page import figure, fill_page, section
from launch.report.rollouts import IMAGE_SIDE, image_html, question_html

MAX_SOURCES = 12
MAX_TEXT = 20_000
"""Characters of a turn that are shown."""
SIDES = (256, 512, 1024, 2048)
"""Images are counted by their area, between the squares of these sides."""
_FIELDS_SHOWN = 40


def write_gallery(config: InspectConfig) -> Path:
    """Write the page and return its path.

    Raises:
        ValueError: there is no index, or no sample.
    """
    out = Path(config.out)
    page = render(config, survey(config))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(page, encoding="utf-8", errors="replace")
    part.replace(out)
    return out


def render(config: InspectConfig, found: Survey) -> str:
    """The page as a string; the same survey gives the same bytes."""
    name = Path(config.shards).name or config.shards
    drawn = f"{len(found.shown)} samples drawn with seed {config.seed}, in the order of the folder."
    body = (
        _header(name, found)
        + section("Numbers", _basis(found), _charts(found))
        + section("Samples", drawn, [_card(sample) for sample in found.shown], layout="cards")
        + f"<footer>{escape(config.shards)} · data {escape(found.digest)}</footer>"
    )
    return fill_page(f"{name} · samples", body)


# --- the folder in numbers


def _header(name: str, found: Survey) -> str:
    tiles = [
        (f"{found.samples:,}", "samples", f"in {found.shards:,} shard{'s' * (found.shards != 1)}"),
        (_size(found.bytes), "on disk", f"{_size(found.bytes / found.samples)} a sample"),
        (_share(found.text_only, found), "text only", "without an image"),
        (_share(found.unanswered, found), "without an answer", "to verify against"),
    ]
    cells = (
        f'<div class="tile"><b>{escape(big)}</b>{escape(what)}<span>{escape(detail)}</span></div>'
        for big, what, detail in tiles
    )
    notes = "".join(f"<li>{escape(reason)}</li>" for reason in found.broken[:10])
    more = f"<li>and {len(found.broken) - 10} more</li>" if len(found.broken) > 10 else ""
    return (
        f'<header id="summary"><div class="eyebrow">Megatron-OMR · samples of a folder</div><h1>{escape(name)}</h1>'
        f'<div class="tiles">{"".join(cells)}</div>'
        '<nav><a href="#numbers">Numbers</a><a href="#samples">Samples</a></nav>'
        + (f'<ul class="notes" id="notes"><li>Not readable:</li>{notes}{more}</ul>' if notes else "")
        + "</header>"
    )


def _basis(found: Survey) -> str:
    if found.looked_at == found.samples:
        return "Counted over all samples."
    return f"Counted over {found.looked_at:,} samples, drawn at random from {found.samples:,}."


def _charts(found: Survey) -> list[str]:
    if not found.looked_at:
        return []
    sources = list(found.sources.items())
    rest = sum(count for _, count in sources[MAX_SOURCES:])
    rows = [*sources[:MAX_SOURCES], *([("others", rest)] if rest else [])]
    mean = sum(found.tokens) / found.looked_at
    tokens = f"Of text and images, estimated. Mean {mean:,.0f}, most {max(found.tokens):,}."
    charts = [
        figure("sources", "Sources", "Samples by corpus.", _bars("Samples by corpus", rows)),
        figure("tokens", "Tokens", tokens, _bars("Samples by estimated tokens", _by_tokens(found.tokens))),
    ]
    if found.image_sizes:
        largest = max(found.image_sizes, key=math.prod)
        caption = f"Images by area in pixels. The largest has {largest[0]:,} × {largest[1]:,}."
        bars = _bars("Images by area", _by_area(found.image_sizes))
        charts.append(figure("images", "Image sizes", caption, bars))
    return charts


def _bars(label: str, rows: Sequence[tuple[str, float]]) -> str:
    return value_bars(label, [(name, value, format_number(value)) for name, value in rows])


def _by_tokens(tokens: Sequence[int]) -> list[tuple[str, int]]:
    """Samples by powers of two, from the first to the last that there are."""
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


# --- samples


def _card(sample: Sample) -> str:
    asked = next((turn for turn in sample.messages if turn.role == "user"), None)
    question = question_html(asked.content[:MAX_TEXT]) if asked else ""
    turns = "".join(_turn(turn) for turn in sample.messages if turn is not asked)
    answer = (
        f"<div>Answer: <strong>{escape(sample.answer)}</strong></div>"
        if sample.answer
        else '<div class="meta">no reference answer</div>'
    )
    images = "".join(_image(data, number, len(sample.images)) for number, data in enumerate(sample.images, 1))
    images = f'<div class="images">{images}</div>' if images else "<div></div>"
    return (
        f'<article class="card"><div class="ask">{images}'
        f'<div><p class="question">{question}</p>{answer}<div class="meta">{escape(sample.source)}</div>'
        f'<div class="meta">{escape(sample.id)}</div></div></div>{turns}{_metadata(sample)}</article>'
    )


def _turn(turn: Message) -> str:
    text = escape(turn.content[:MAX_TEXT]) + (" …" if len(turn.content) > MAX_TEXT else "")
    if turn.role == "system":
        return f'<details><summary>system prompt</summary><div class="turn"><p>{text}</p></div></details>'
    role = escape(turn.role)
    # long texts scroll, which takes a place in the order of the keyboard
    scrolls = f'tabindex="0" role="region" aria-label="turn of the {role}"'
    return f'<div class="turn"><div class="meta">{role}</div><p {scrolls}>{text}</p></div>'


def _metadata(sample: Sample) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value)[:500])}</td></tr>"
        for name, value in list(sample.metadata.items())[:_FIELDS_SHOWN]
    )
    return f"<details><summary>metadata</summary><table>{rows}</table></details>" if rows else ""


def _image(data: bytes, number: int, count: int) -> str:
    from data_pipeline.encode.images import load_image

    try:
        image = load_image(data, ImageConfig())
    except BadSample as error:
        return f'<div class="lost" title="{escape(str(error))}">image {number}<br>not readable</div>'
    image.thumbnail((2 * IMAGE_SIDE, 2 * IMAGE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return image_html(file.getvalue(), f"image {number} of {count} of the question")
