"""Parts of a raw row -> parts of a Sample: what the adapters in corpora.py are made of.

What does not fit raises BadSample, which says the column, what was wanted, what was seen and what to do.
Pure but for one thing: an image that a row names by its path is read from the image folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import BadSample, mismatch
from data_pipeline.sources.image_values import image_bytes
from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, Message, Sample
from data_pipeline.verify.released import extract_answer, format_score

ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ("system", "user", "assistant")}}
"""What corpora call a speaker -> what we do."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A raw row of a corpus, and where it was read."""

    fields: Mapping[str, object]
    corpus: str
    number: int  # in its file, from 0: lineage only, no id depends on it
    file: str = ""  # of a source of several, relative to its folder
    split: str = ""
    images: Path | None = None  # the folder that holds images which rows name by path
    system: str = SYSTEM_PROMPT  # goes before a row that has no system turn of its own; "" for none


# --- columns


def text(row: Row, column: str) -> str:
    """The text of a column that must be there; numbers count as text.

    Raises:
        BadSample: the column is missing, empty or holds no text.
    """
    value = row.fields.get(column)
    if column not in row.fields:
        raise mismatch(column, "a column with text", None, f"this row has {', '.join(row.fields) or 'none'}")
    is_text = isinstance(value, (str, int, float)) and not isinstance(value, bool) and value == value
    if not is_text:  # NaN is none
        raise mismatch(column, "text", value, "convert it, or choose the corpus that has this column")
    if not str(value).strip():
        raise BadSample("text", f"{column}: wanted text, saw an empty one; drop the row")
    return str(value).strip()


def clean_answer(value: str) -> str:
    r"""A reference answer without its `<answer>` tags or `\boxed{}`."""
    return tagged_answer(value) or value.strip()


def tagged_answer(value: str) -> str:
    r"""What stands in the first `<answer>`, else in the last `\boxed{}` that is closed, else ""."""
    has_tags = "</answer>" in value.partition("<answer>")[2]
    # Without either, extract_answer would take the last number, and a guess is no reference.
    return extract_answer(value) if has_tags or format_score(value) == 1.0 else ""


def lineage(row: Row, columns: Sequence[str]) -> dict[str, str | int | float]:
    """Where a sample comes from: its row, and those of `columns` that hold something worth keeping."""
    found: dict[str, str | int | float] = {"corpus": row.corpus, "split": row.split, "row": row.number}
    found |= {"file": row.file} if row.file else {}
    for column in columns:
        value = row.fields.get(column)
        if isinstance(value, (list, tuple)):
            value = "; ".join(map(str, value))
        if isinstance(value, (str, int, float)) and value != "" and value == value:  # no NaN
            found[column] = value
    return found


def listed_images(row: Row) -> list[object]:
    """The values of the column `images` or `image`: a list or one; none where they are empty."""
    found = row.fields.get("images") or row.fields.get("image")
    if not found:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [found]


# --- conversations


def conversation(turns: object, column: str) -> tuple[list[Message], list[object]]:
    """Messages of {role, content} or {from, value}, and the images that stand inside of their contents."""
    if not isinstance(turns, (list, tuple)) or not turns:
        raise mismatch(column, "a list of turns", turns, "write [{role, content}, ...]")
    messages, images = [], []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise mismatch(column, "turns of {role, content}", turn, "write {role, content}")
        said = turn.get("role", turn.get("from"))
        role = ROLES.get(str(said))
        if role is None:
            raise mismatch(f"{column}.role", f"one of {', '.join(ROLES)}", said, "rename or drop the turn")
        content, inside = _content(turn.get("content", turn.get("value")), column)
        messages.append(Message(role=role, content=content))
        images += inside
    return messages, images


def _content(content: object, column: str) -> tuple[str, list[object]]:
    """The text of a turn with a mark for each image, and the images given on the spot."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, (list, tuple)):
        raise mismatch(f"{column}.content", "text or a list of parts", content, "write a text")
    parts = list(_parts(content, column))
    images = [image for _, image in parts if image is not None]
    marked = any(IMAGE_MARK in words for words, _ in parts)  # then the text says where images go
    return "".join(words if words or marked else IMAGE_MARK for words, _ in parts), images


def _parts(content: Sequence[object], column: str) -> Iterator[tuple[str, object]]:
    """(text, None), or ("", an image or None where a column holds it)."""
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or kind not in ("text", "image", "image_url"):
            raise mismatch(
                f"{column}.content", "parts of type text, image or image_url", part, "drop the row"
            )
        if kind != "text":
            yield "", part.get("image_url") or part.get("image")
        elif isinstance(part.get("text"), str) and part["text"]:
            yield part["text"], None


def with_marks(messages: Sequence[Message], num_images: int) -> list[Message]:
    """The messages with one mark per image; marks that are missing go before the first question."""
    if any(IMAGE_MARK in message.content for message in messages if message.role != "user"):
        raise BadSample(
            "text", f"{IMAGE_MARK} outside of the user's turns, where no image can be; drop the row"
        )
    num_marks = sum(message.content.count(IMAGE_MARK) for message in messages)
    if num_marks > num_images:
        raise BadSample("image", f"{num_marks} marks {IMAGE_MARK} for {num_images} images; give all of them")
    asked = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    if asked is None or not messages[asked].content.replace(IMAGE_MARK, "").strip():
        raise BadSample("text", "there is no question; a row needs a user turn with text")
    question = IMAGE_MARK * (num_images - num_marks) + messages[asked].content
    return [*messages[:asked], Message(role="user", content=question), *messages[asked + 1 :]]


# --- whole samples


def build_sample(
    row: Row,
    *,
    messages: Sequence[Message],
    images: Sequence[object],
    answer: str,
    row_id: object = "",
    kind: object = None,
    keep: Sequence[str] = (),
    teacher: str = "",
) -> Sample:
    """Put a sample together: marks, system prompt, id and lineage.

    The id is made of the corpus, `row_id` and a hash of the content, never of the reading order: rows repeat their
    id for each answer to a question, and ids of one's own may come twice.
    """
    encoded = tuple(image_bytes(image, row.images) for image in images)
    turns = with_marks(messages, len(encoded))
    has_response = turns[-1].role == "assistant" and bool(turns[-1].content.strip())
    if not has_response and not answer:
        raise BadSample("answer", "neither a response to learn from nor a reference answer; drop the row")
    digest = _digest(turns, encoded, answer)
    own = "" if row_id is None else str(row_id)  # 0 is a name, too
    name = f"{own}-{digest[:8]}" if own else digest[:16]
    metadata = lineage(row, keep)
    metadata |= {"row_id": own} if own else {}
    metadata |= {"teacher": teacher} if teacher and has_response else {}
    metadata |= {"kind": str(kind)} if kind else {}
    if row.system and turns[0].role != "system":
        turns.insert(0, Message(role="system", content=row.system))
    _check_characters([name, answer, *map(str, metadata.values()), *(turn.content for turn in turns)])
    return Sample(
        id=f"{row.corpus}/{name}",
        source=row.corpus,
        messages=tuple(turns),
        images=encoded,
        answer=answer,
        metadata=metadata,
    )


def _check_characters(texts: Sequence[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadSample("text", f"broken characters, not UTF-8: {error}; mend or drop the row") from error


def _digest(messages: Sequence[Message], images: Sequence[bytes], answer: str) -> str:
    """Hash of what a sample says and shows; lengths keep neighbours apart."""
    digest = hashlib.sha256()
    texts = [part for message in messages for part in (message.role, message.content)]
    for part in [*(text.encode("utf-8", "surrogatepass") for text in (*texts, answer)), *images]:
        digest.update(f"{len(part)}:".encode())
        digest.update(part)
    return digest.hexdigest()
