"""Compares the first rows of a corpus with what its adapter reads: which match, which do not, and how to fix them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from data_pipeline.encode.images import load_image
from data_pipeline.encode.limits import load_limits
from data_pipeline.errors import BadSample
from data_pipeline.sources.adapters import CORPORA, Corpus, find_corpus
from data_pipeline.sources.config import CheckRowsConfig
from data_pipeline.sources.import_corpus import read_corpus
from data_pipeline.types import Sample

MIN_MATCHING = 0.9
"""With a smaller share of matching rows the check fails: the wrong adapter, or the wrong image folder."""
SHOWN = 3
"""Rows shown of each kind of problem."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The output of `omr data import --check`."""

    ok: bool  # enough rows match
    lines: tuple[str, ...]


def check_corpus(corpus: str | Corpus, config: CheckRowsConfig) -> CheckReport:
    """Reads the first rows and decodes their images in full.

    Args:
        corpus: a name in CORPORA, or the corpus itself.

    Raises:
        ValueError: the source cannot be read at all.
    """
    limits, corpus = load_limits(config), find_corpus(corpus)
    good: list[tuple[str, Sample]] = []
    bad: dict[str, list[str]] = {}  # kind of problem -> a line per row
    for place, build in islice(read_corpus(corpus, config.rows), config.count):
        try:
            sample = build()
            for image in sample.pictures:
                load_image(image, config.image)
            if limits:
                limits.check(sample)
        except BadSample as error:
            column, is_mismatch, _ = str(error).partition(": wanted")
            bad.setdefault(column if is_mismatch else error.reason, []).append(f"{place}, {error}")
        else:
            good.append((place, sample))
    num_rows = len(good) + sum(map(len, bad.values()))
    lines = [f"{corpus.name}: {len(good)} of {num_rows} rows match"]
    for cases in bad.values():
        lines += [f"  {case}" for case in cases[:SHOWN]]
        lines += [f"  ... and {len(cases) - SHOWN} more rows like these"] if len(cases) > SHOWN else []
    lines += _unanswered(good)
    lines += _preview(*good[0]) if good else _other_corpora(corpus.name, config)
    return CheckReport(ok=bool(good) and len(good) >= MIN_MATCHING * num_rows, lines=tuple(lines))


def _unanswered(good: list[tuple[str, Sample]]) -> Iterator[str]:
    if places := [place for place, sample in good if not sample.answer]:
        first = f"  {len(places)} matching rows have no reference answer, the first is {places[0]}"
        fix = "put the answer into <answer> tags, into \\boxed{} or into a column `answer`"
        yield f"{first}: they can be used for SFT but not be verified; {fix}"


def _preview(place: str, sample: Sample) -> Iterator[str]:
    yield f"{place} becomes {sample.id}"
    for message in sample.messages:
        yield f"  {message.role:<10} {_shorten(message.content)}"
    for image in sample.images:
        with Image.open(io.BytesIO(image)) as file:
            yield f"  image      {file.format}, {file.width} x {file.height}"
    for video in sample.videos:
        seconds = ", ".join(f"{second:.1f}" for second in video.seconds[:6])
        yield f"  video      {len(video.frames)} frames at {seconds}{', ...' * (len(video.frames) > 6)} seconds"
    yield f"  answer     {_shorten(sample.answer) or '(none)'}"
    yield "  metadata   " + ", ".join(f"{name}={value}" for name, value in sample.metadata.items())


def _other_corpora(corpus: str, config: CheckRowsConfig) -> list[str]:
    """Names the corpora whose adapters accept the first row."""
    fitting = [name for name in CORPORA if name != corpus and _accepts_first_row(name, config)]
    return [f"the first row fits {', '.join(fitting)}"] if fitting else []


def _accepts_first_row(corpus: str, config: CheckRowsConfig) -> bool:
    try:
        return any(build() for _, build in islice(read_corpus(corpus, config.rows), 1))
    except BadSample:
        return False


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 90 else line[:87] + "..."
