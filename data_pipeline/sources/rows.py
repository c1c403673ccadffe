"""Builds the parts of a Sample from the columns of a raw row, for the adapters in adapters.py.

A column that does not fit raises BadSample, which names the column, the wanted and the seen value, and the fix.
The only input besides the row are the files of images and videos that it names by path.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from data_pipeline.errors import BadSample, column_error
from data_pipeline.sources.config import FramesConfig
from data_pipeline.sources.conversations import add_marks, add_system
from data_pipeline.sources.media.image_values import read_image
from data_pipeline.sources.media.video_values import read_video
from data_pipeline.sources.text_values import read_label, read_value
from data_pipeline.types import SYSTEM_PROMPT, Message, Sample, Video
from data_pipeline.verify.check import check_reference
from data_pipeline.verify.released import find_marked_answer, trim


@dataclass(frozen=True, kw_only=True)
class Row:
    """A raw row of a corpus and its place in the source."""

    fields: Mapping[str, object]
    corpus: str
    number: int  # in its file, from 0; only for the lineage: no id depends on it
    file: str = ""  # relative to the source's folder; "" for a source of one file
    split: str = ""
    images: Path | None = None  # folder of the images that rows name by path
    system: str = SYSTEM_PROMPT  # put before a row without a system turn; "" for none
    frames: FramesConfig = FramesConfig()


def read_text(row: Row, column: str) -> str:
    """Returns the text of a required column; numbers count as text.

    Raises:
        BadSample: the column is missing or empty, or does not hold one text.
    """
    if column not in row.fields:
        raise column_error(column, "a text column", None, f"this row has {', '.join(row.fields) or 'none'}")
    text = read_value(column, row.fields[column])
    if not text:
        raise BadSample("text", f"{column}: wanted text, saw an empty one; drop the row")
    return text


def clean_answer(value: str) -> str:
    r"""Returns a reference answer without its `<answer>` tags or `\boxed{}`."""
    marked = find_marked_answer(value)
    return value.strip() if marked is None else trim(marked.strip())


def find_answer(value: str) -> str:
    r"""Returns the content of the first `<answer>`, else of the last closed `\boxed{}`, else ""."""
    return trim((find_marked_answer(value) or "").strip())


def label(row: Row, column: str) -> str:
    """Returns an id, a kind or another description of the row; "" where it has none."""
    return read_label(column, row.fields.get(column))


def _lineage(row: Row, columns: Sequence[str]) -> dict[str, str | int | float]:
    """Returns the row that a sample comes from, and those of `columns` that hold a text or a number."""
    found: dict[str, str | int | float] = {"corpus": row.corpus, "split": row.split, "row": row.number}
    found |= {"file": row.file} if row.file else {}
    for column in columns:
        value = row.fields.get(column)
        if isinstance(value, (float, Decimal)):
            found |= {column: float(value)} if math.isfinite(value) else {}
        elif isinstance(value, int):
            found[column] = value
        elif text := read_label(column, value):
            found[column] = text
    return found


def build_sample(
    row: Row,
    *,
    messages: Sequence[Message],
    images: Sequence[object],
    videos: Sequence[object] = (),
    answer: str,
    row_id: str = "",
    kind: str = "",
    keep: Sequence[str] = (),
    teacher: str = "",
) -> Sample:
    """Builds a sample: adds image marks, system prompt, id and lineage.

    The id is the corpus, `row_id` and a hash of the content, and does not depend on the reading order: published rows
    repeat their id for each response to a question, and ids of your own rows may repeat.
    """
    encoded = tuple(read_image(image, row.images) for image in images)
    clips = tuple(read_video(video, row.images, row.frames, read_image) for video in videos)
    turns = add_marks(add_system(messages, row.fields), len(encoded), len(clips))
    has_response = turns[-1].role == "assistant" and bool(turns[-1].content.strip())
    if not has_response and not answer:
        raise BadSample("answer", "neither a response to learn from nor a reference answer; drop the row")
    if not has_response:
        check_reference(answer)
    digest = _digest(turns, encoded, clips, answer)
    name = f"{row_id}-{digest[:8]}" if row_id else digest[:16]
    named = {"row_id": row_id, "teacher": teacher if has_response else "", "kind": kind}
    metadata = _lineage(row, keep) | {key: value for key, value in named.items() if value}
    if row.system and turns[0].role != "system":
        turns.insert(0, Message(role="system", content=row.system))
    try:
        "".join([name, answer, *map(str, metadata.values()), *(turn.content for turn in turns)]).encode()
    except UnicodeEncodeError as error:
        raise BadSample("text", f"broken characters, not UTF-8: {error}; fix or drop the row") from error
    return Sample(
        id=f"{row.corpus}/{name}",
        source=row.corpus,
        messages=tuple(turns),
        images=encoded,
        videos=clips,
        answer=answer,
        metadata=metadata,
    )


def _digest(
    messages: Sequence[Message], images: Sequence[bytes], videos: Sequence[Video], answer: str
) -> str:
    """Returns a hash of texts, images and videos; each part follows its length, so that no two samples share bytes."""
    digest = hashlib.sha256()
    texts = [part for message in messages for part in (message.role, message.content)]
    shown = [part for video in videos for part in (*video.frames, video.times.encode())]
    for part in [*(text.encode("utf-8", "surrogatepass") for text in (*texts, answer)), *images, *shown]:
        digest.update(f"{len(part)}:".encode())
        digest.update(part)
    return digest.hexdigest()
