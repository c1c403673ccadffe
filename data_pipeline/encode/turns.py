"""The rules of a conversation that hold for every model: roles, texts and image marks."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from data_pipeline.errors import BadSample
from data_pipeline.types import IMAGE_MARK, ROLES, VIDEO_MARK, Message

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>"),
)
"""Those of the published Qwen-VL models, for texts that are checked before a model is chosen."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def split_response(messages: Sequence[Message]) -> tuple[Sequence[Message], Message | None]:
    """Returns the prompt, and the response to it if the last turn is the assistant's."""
    if messages and messages[-1].role == "assistant":
        return messages[:-1], messages[-1]
    return messages, None


def check_turns(messages: Sequence[Message], num_images: int, num_videos: int = 0) -> None:
    """Refuses turns that no model can be asked, or that are not worth learning.

    Without videos their mark is text, a tag of HTML.

    Raises:
        BadSample: an unknown role, no user's turn, a blank turn of the assistant, a mark in one, half a surrogate
            pair, or another number of marks than of images or videos.
    """
    for number, message in enumerate(messages):
        if message.role not in ROLES:
            raise BadSample("text", f"turn {number}: role {message.role!r} must be one of {', '.join(ROLES)}")
        if message.role == "assistant":
            check_response(message.content)
        else:
            check_text(message.content)
    if not any(message.role == "user" for message in messages):
        raise BadSample("text", "no user's turn: there is nothing to respond to; add the question")
    marks = sum(message.content.count(IMAGE_MARK) for message in messages)
    if marks != num_images:
        raise BadSample("text", f"{marks} marks {IMAGE_MARK} in the text, but {num_images} images")
    if num_videos:
        asked = [message.content for message in messages if message.role != "assistant"]
        marks = sum(text.count(VIDEO_MARK) for text in asked)
        if marks != num_videos:
            raise BadSample(
                "text", f"{marks} marks {VIDEO_MARK} in the prompt's texts, but {num_videos} videos"
            )
        if any(VIDEO_MARK in m.content for m in messages if m.role == "assistant"):
            raise BadSample("text", f"{VIDEO_MARK} in the assistant's turn: responses hold no videos")


def check_text(text: str, special: Collection[str] = ()) -> None:
    """Raises BadSample for half a surrogate pair, which has no bytes, and for special tokens, which forge turns."""
    if half := _SURROGATE.search(text):
        code = f"U+{ord(half.group()):04X}"
        raise BadSample("text", f"holds {code}, half of a surrogate pair, which is no character; remove it")
    for token in special:
        if token in text:
            raise BadSample("text", f"holds the special token {token}; remove it from the data")


def check_response(text: str, special: Collection[str] = ()) -> None:
    """Raises BadSample for a turn of the assistant that is blank, holds an image's mark, or as check_text."""
    if not text.strip():
        raise BadSample("text", "a turn of the assistant is blank and would teach to say nothing; drop it")
    if IMAGE_MARK in text:
        raise BadSample("text", f"{IMAGE_MARK} in the assistant's turn: responses hold no images")
    check_text(text, special)
