"""Reads the turns of a row and the places of its images and videos: none without a place, no place without one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.encode.image_header import image_format
from data_pipeline.errors import BadSample, column_error
from data_pipeline.sources.media.video_decoder import NO_SOUND
from data_pipeline.sources.text_values import is_missing, read_value
from data_pipeline.types import IMAGE_MARK, VIDEO_MARK, Message

ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ("system", "user", "assistant")}}
"""Names of speakers in corpora -> roles of messages."""
SYSTEM_COLUMNS = ("system", "system_prompt")
_IMAGE_COLUMNS = ("images", "image")
_LIKE_IMAGES = re.compile(r"image|img|picture|photo", re.IGNORECASE)
_FILE = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_PART_IMAGES = ("image_url", "image", "url", "path")  # of OpenAI, of Qwen, of transformers
_VIDEO_COLUMNS, _PART_VIDEOS = ("videos", "video"), ("video_url", "video", "url", "path", "frames")
_SOUND_COLUMNS, _SOUND_PARTS = ("audios", "audio"), ("audio", "audio_url", "input_audio")
_WORD = re.compile(
    rf"""(["'`]){IMAGE_MARK}\1|[“‘«„]{IMAGE_MARK}[”’»“]|`[^`\n]*{IMAGE_MARK}[^`\n]*`|{IMAGE_MARK}\s*</image>"""
    rf"|\b(the|an?|html|svg|xml) {IMAGE_MARK} (tag|element|token|placeholder)",
    re.IGNORECASE,
)
"""The mark as a word of the text: quoted, in code, or called a tag."""


@dataclass(frozen=True)
class VideoPart:
    """The place of a video inside of a turn, and the video unless a column of the row holds it."""

    value: object


def read_conversation(turns: object, column: str) -> tuple[list[Message], list[object]]:
    """Returns the messages of turns {role, content} or {from, value}, and the images and videos inside of them."""
    if not isinstance(turns, (list, tuple)) or not turns:
        raise column_error(column, "a list of turns", turns, "write [{role, content}, ...]")
    messages, images = [], []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise column_error(column, "turns of {role, content}", turn, "write {role, content}")
        speaker = turn.get("role", turn.get("from"))
        role = ROLES.get(str(speaker))
        if role is None:
            raise column_error(f"{column}.role", f"one of {', '.join(ROLES)}", speaker, "rename or drop it")
        content, inside = _read_content(turn.get("content", turn.get("value")), column)
        messages.append(Message(role=role, content=content))
        images += inside
    return messages, images


def _read_content(content: object, column: str) -> tuple[str, list[object]]:
    """Returns the text of a turn with a mark for each image and video, and those that it holds."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, (list, tuple)):
        raise column_error(f"{column}.content", "text or a list of parts", content, "write a text")
    texts: list[str | None] = []  # None in the place of an image
    images: list[object] = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") in _SOUND_PARTS:
            raise BadSample("audio", f"{column}.content: a part of type {part['type']}; {NO_SOUND}")
        if isinstance(part, Mapping) and part.get("type") in ("video", "video_url"):
            texts.append("" if any(VIDEO_MARK in _text(other) for other in content) else VIDEO_MARK)
            images.append(VideoPart(_part_video(part)))
            continue
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "image", "image_url"):
            wanted = "parts of type text, image, image_url, video or video_url"
            raise column_error(f"{column}.content", wanted, part, "drop the row")
        text, image = part.get("text"), _part_image(part, column)
        if part["type"] == "text" and (image is not None or not isinstance(text, str)):
            raise column_error(
                f"{column}.content", "a text alone in a part of type text", part, "split the part"
            )
        if part["type"] != "text" and text:
            raise column_error(
                f"{column}.content", f"no text in a part of type {part['type']}", part, "split the part"
            )
        texts.append(text if part["type"] == "text" else None)
        images += [] if image is None else [image]  # else a column of the row holds it
    places, marks = texts.count(None), sum(text.count(IMAGE_MARK) for text in texts if text)
    if places and marks not in (0, places):
        detail = f"{column}.content: {places} parts with images and {marks} marks {IMAGE_MARK} in one turn"
        raise BadSample("image", f"{detail}; write a mark for each image, or none")
    mark = "" if marks else IMAGE_MARK  # marks in the text say already where the images go
    return "".join(mark if text is None else text for text in texts), images


def _part_image(part: Mapping, column: str) -> object:
    """Returns the image that a part holds; None where it only marks a place. Parquet fills fields with None."""
    found = [part[name] for name in _PART_IMAGES if part.get(name)]
    found = [image for image in found if not isinstance(image, Mapping) or any(image.values())]
    if len(found) > 1:
        raise column_error(f"{column}.content", "one image in a part", part, "split the part")
    return found[0] if found else None


def _text(part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if isinstance(text, str) else ""


def _part_video(part: Mapping) -> object:
    """Returns the video that a part holds; None where it only marks a place."""
    found = next((part[name] for name in _PART_VIDEOS if part.get(name)), None)
    if isinstance(found, Mapping) and found.get("url"):  # OpenAI's {"video_url": {"url": ...}}
        return found["url"]
    if isinstance(found, (list, tuple)):  # Qwen's list of frames
        times = {name: part[name] for name in ("fps", "timestamps") if part.get(name)}
        return {"frames": found, "fps": part.get("sample_fps"), **times}
    return found


def list_videos(fields: Mapping[str, object], inside: Sequence[object] = ()) -> list[object]:
    """Returns the videos of a row: those inside its turns, else those of its column `videos` or `video`.

    Raises:
        BadSample: the row holds other videos in several of these places, or sound.
    """
    if name := next((name for name in _SOUND_COLUMNS if _holds(fields.get(name))), ""):
        raise BadSample("audio", f"{name}: {NO_SOUND}")
    places = [item for item in inside if isinstance(item, VideoPart)]
    found = [place.value for place in places if place.value]
    listed = _read_columns(fields, _VIDEO_COLUMNS)
    if found and listed:
        raise column_error("videos", "videos in the messages or in a column", listed, "keep one of both")
    if len(places) not in (0, len(found or listed)):
        raise BadSample(
            "video", f"{len(places)} parts with videos, but {len(found or listed)} videos; give all"
        )
    return found or listed


def list_images(fields: Mapping[str, object], inside: Sequence[object] = ()) -> list[object]:
    """Returns the images of a row: those inside its turns, else those of its column `images` or `image`.

    Raises:
        BadSample: the row holds images in several of these places, or in another column; some would not be used.
    """
    inside = [item for item in inside if not isinstance(item, VideoPart)]
    listed = _read_columns(fields, _IMAGE_COLUMNS)
    if inside and listed:
        raise column_error("images", "images in the messages or in a column", listed, "keep one of both")
    has_none = not inside and not listed
    for name, value in fields.items():
        if name not in (*_IMAGE_COLUMNS, *_VIDEO_COLUMNS) and (
            _is_image(value) or (has_none and _names_files(name, value))
        ):
            raise column_error(name, "images in `images`", value, "put it there, or drop the column")
    return list(inside) or listed


def _read_columns(fields: Mapping[str, object], columns: tuple[str, str]) -> list[object]:
    """Returns what a column such as `images` or `image` holds; both may hold the same, and no more in the second."""
    found = {
        name: list(value) if isinstance(value, (list, tuple)) else [value]
        for name in columns
        if (value := fields.get(name))
    }
    listed = next(iter(found.values()), [])
    if any(item not in listed for item in found.get(columns[1], ())):
        many, one = columns
        raise column_error(one, f"{many} in one column", fields[one], f"put all of them into `{many}`")
    return listed


def _holds(value: object) -> bool:
    """Returns whether a column holds anything: Parquet writes {bytes: None, path: None} for nothing."""
    if isinstance(value, Mapping):
        return any(map(_holds, value.values()))
    return any(map(_holds, value)) if isinstance(value, (list, tuple)) else not is_missing(value)


def _is_image(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_image, value[:9]))  # tokens are longer lists
    data = value.get("bytes") if isinstance(value, Mapping) else value
    return isinstance(data, (bytes, bytearray)) and bool(image_format(bytes(data[:16])))


def _names_files(column: str, value: object) -> bool:
    """Returns whether a column such as image_path or image_1 holds the name of an image file."""
    first = next(iter(value), None) if isinstance(value, (list, tuple)) else value
    return bool(_LIKE_IMAGES.search(column) and isinstance(first, str) and _FILE.search(first))


def add_system(messages: Sequence[Message], fields: Mapping[str, object]) -> list[Message]:
    """Returns the messages with the text of the column `system` or `system_prompt` as their first turn.

    Raises:
        BadSample: they begin with another system turn, or both columns have a text.
    """
    texts = [messages[0].content.strip()] if messages[0].role == "system" else []
    given = [read_value(name, fields[name]) for name in SYSTEM_COLUMNS if not is_missing(fields.get(name))]
    if len({*texts, *given}) > 1:
        raise column_error(
            "system", f"one system prompt, {(texts or given)[0]!r}", given[-1], "keep one of both"
        )
    return list(messages) if texts or not given else [Message(role="system", content=given[0]), *messages]


def add_marks(messages: Sequence[Message], num_images: int, num_videos: int = 0) -> list[Message]:
    """Returns the messages with one mark per image and video; where there is none, all go before the first question."""
    if any(IMAGE_MARK in message.content for message in messages if message.role != "user"):
        raise BadSample("text", f"{IMAGE_MARK} outside the user's turns, where no image can be; drop the row")
    if word := next((found for message in messages if (found := _WORD.search(message.content))), None):
        raise BadSample(
            "text", f"{word[0]!r} reads like a word, not like the place of an image; write it otherwise"
        )
    num_marks = sum(message.content.count(IMAGE_MARK) for message in messages)
    if num_marks not in (0, num_images):
        fix = "give each image its mark, or none" if num_marks < num_images else "give all of them"
        raise BadSample("image", f"{num_marks} marks {IMAGE_MARK} for {num_images} images; {fix}")
    shown = sum(message.content.count(VIDEO_MARK) for message in messages) if num_videos else 0
    if shown not in (0, num_videos):
        raise BadSample(
            "video", f"{shown} marks {VIDEO_MARK} for {num_videos} videos; give each its mark, or none"
        )
    asked = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    plain = "" if asked is None else messages[asked].content.replace(IMAGE_MARK, "")
    if asked is None or not (plain.replace(VIDEO_MARK, "") if num_videos else plain).strip():
        raise BadSample("text", "no question; write a user turn with text, or drop the row")
    marks = IMAGE_MARK * (num_images - num_marks) + VIDEO_MARK * (num_videos - shown)
    question = marks + messages[asked].content
    return [*messages[:asked], Message(role="user", content=question), *messages[asked + 1 :]]
