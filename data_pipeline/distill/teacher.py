"""Makes requests of questions, and samples to learn from of a teacher's responses: pure functions.

The teacher's question differs from the student's: it has another system prompt, and lacks the phrases that ask for
a form of the answer. The student learns the original question, with the teacher's thoughts and answer.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from data_pipeline.distill.config import Keep, TeacherConfig, parse_extra_body
from data_pipeline.distill.likelihood import rank_responses
from data_pipeline.distill.responses import TeacherResponse
from data_pipeline.encode.image_header import MIME_TYPES, image_format
from data_pipeline.errors import BadSample
from data_pipeline.types import (
    FORMAT_PHRASES,
    IMAGE_MARK,
    SYSTEM_PROMPT,
    VIDEO_MARK,
    Message,
    Sample,
    Video,
)
from data_pipeline.verify.check import check_reference


def teacher_request(sample: Sample, rollout: int, teacher: TeacherConfig) -> tuple[dict[str, object], str]:
    """Returns the request for response number `rollout` to a question, and a key that names it.

    Its seed depends on the teacher's seed and name, the question's id and the number.

    Raises:
        BadSample: the question cannot be asked, or a response could not be checked.
    """
    check_reference(sample.answer)
    name = f"{teacher.name}/" if teacher.name else ""
    key = f"{teacher.seed}/{name}{sample.id}/{rollout}"
    body: dict[str, object] = {
        "messages": teacher_messages(sample, teacher.system_prompt),
        "temperature": teacher.temperature,
        "max_tokens": teacher.max_tokens,
        "seed": int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1,  # 31 bits suit every server
    }
    if teacher.logprobs:
        body["logprobs"] = True
    if teacher.top_p is not None:
        body["top_p"] = teacher.top_p
    return body | parse_extra_body(teacher.extra_body), key


def teacher_messages(sample: Sample, system_prompt: str) -> list[dict[str, object]]:
    """Returns the turns before the sample's response as OpenAI messages, with an image as a data URL at each mark.

    At a video's mark stand all of its frames, each behind a text with its time: every server understands that.

    Raises:
        BadSample: there is no question, its marks do not match its images, or an image cannot be read.
    """
    turns = [
        replace(turn, content=clean_question(turn.content)) if turn.role == "user" else turn
        for turn in question_turns(sample)
    ]
    if system_prompt:
        turns.insert(0, Message(role="system", content=system_prompt))
    marks = sum(turn.content.count(IMAGE_MARK) for turn in turns)
    if marks != len(sample.images):
        raise BadSample("text", f"{marks} marks {IMAGE_MARK} in the text, but {len(sample.images)} images")
    marks = sum(turn.content.count(VIDEO_MARK) for turn in turns)
    if sample.videos and marks != len(sample.videos):
        raise BadSample("text", f"{marks} marks {VIDEO_MARK} in the text, but {len(sample.videos)} videos")
    images = iter([_image_part(image) for image in sample.images])
    videos = iter([_video_parts(video) for video in sample.videos])
    return [
        {"role": turn.role, "content": _parts(turn.content, images, videos if sample.videos else None)}
        for turn in turns
    ]


def question_turns(sample: Sample) -> tuple[Message, ...]:
    """Returns the turns up to the user's last, without system prompts; raises BadSample if another one follows."""
    turns = [message for message in sample.messages if message.role != "system"]
    if turns and turns[-1].role == "assistant":
        turns.pop()
    if not turns or turns[-1].role != "user":
        raise BadSample("text", "no user's turn to answer")
    return tuple(turns)


def clean_question(text: str) -> str:
    """Removes the phrases that the recipe does not ask a teacher; image marks stay."""
    return FORMAT_PHRASES.sub("", text).strip()


def data_url(image: bytes) -> str:
    """Returns an image as a data URL: PNG and JPEG as they are, others as PNG; raises BadSample if it is broken."""
    mime = MIME_TYPES.get(image_format(image))
    if not mime:
        image, mime = _to_png(image), "image/png"
    return f"data:{mime};base64,{base64.b64encode(image).decode()}"


def parse_response(text: str) -> tuple[str, str]:
    """Returns (thoughts, answer) of a response by the recipe's rules, "" for the one it lacks.

    Thoughts may begin without `<think>` (the chat template may have written it). Without thoughts in tags, they are
    all text before the last `<answer>`. An answer inside the thoughts does not count.
    """
    text = text.replace("<tool_call>", "").replace("</tool_call>", "")
    if "</think>" in text and "<think>" not in text:
        text = f"<think>{text}"
    before, has_thought, rest = text.partition("<think>")
    thought, is_closed, after = rest.partition("</think>")
    head, has_answer, tail = (after if is_closed else text).rpartition("<answer>")
    answer, is_ended, _ = tail.partition("</answer>")
    if has_thought and not is_closed:
        return "", ""
    return (thought if has_thought else head).strip(), answer.strip() if has_answer and is_ended else ""


def build_target(thought: str, answer: str) -> str:
    """Returns the text that the student learns to write."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def build_samples(
    samples: Iterable[Sample],
    responses: Iterable[TeacherResponse],
    per_question: int,
    drop: Callable[[Sample, str], None] = lambda sample, reason: None,
    *,
    keep: Keep = "first",
    named: bool = False,
) -> Iterator[Sample]:
    """Yields `per_question` kept responses to each sample, as samples `{id}#{rollout}`, the best ones first.

    Args:
        responses: those to these samples, in the samples' order.
        named: they are of teachers with names: the samples are `{id}#{teacher}-{rollout}`.
        drop: is called with each further right response as a sample, and "surplus".

    Raises:
        ValueError: there are kept responses to a sample that is missing, or comes in another order; or their likelihood
            was not asked for.
    """
    kept = groupby((found for found in responses if not found.reason), lambda response: response.id)
    id, group = next(kept, ("", ()))
    for sample in samples:
        if sample.id != id:
            continue
        for number, response in enumerate(rank_responses(group, keep)):
            learned = _distilled(sample, response, f"{response.teacher}-" if named else "")
            if number < per_question:
                yield learned
            else:
                drop(learned, "surplus")
        id, group = next(kept, ("", ()))
    if id:
        raise ValueError(
            f"there are responses to {id!r}, but no such question can be read in its place; `omr data validate` the "
            "questions, and ask them in another folder if they were changed"
        )


def _distilled(sample: Sample, response: TeacherResponse, name: str) -> Sample:
    lineage = {
        "question": sample.id,
        "teacher": response.teacher,
        "rollout": response.rollout,
        "accuracy": response.accuracy,
        "decided_by": response.decided_by,
    }
    if response.mean_logprob is not None:
        lineage |= {"answer_logprob": response.answer_logprob, "mean_logprob": response.mean_logprob}
    learned = build_target(*parse_response(response.response or ""))
    return replace(
        sample,
        id=f"{sample.id}#{name}{response.rollout}",
        messages=(
            Message(role="system", content=SYSTEM_PROMPT),
            *question_turns(sample),
            Message(role="assistant", content=learned),
        ),
        metadata=sample.metadata | lineage,
    )


Part = dict[str, object]


def _parts(text: str, images: Iterator[Part], videos: Iterator[list[Part]] | None) -> str | list[Part]:
    """Returns a turn's text alone, or as parts; without `videos` their mark is text."""
    marks = IMAGE_MARK if videos is None else f"{IMAGE_MARK}|{VIDEO_MARK}"
    pieces = re.split(f"({marks})", text)
    if len(pieces) == 1:
        return text
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            parts += [{"type": "text", "text": piece}] if piece else []
        elif piece == IMAGE_MARK:
            parts.append(next(images))
        elif videos is not None:
            parts += next(videos)
    return parts


def _image_part(image: bytes) -> Part:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def _video_parts(video: Video) -> list[Part]:
    parts: list[Part] = []
    for second, frame in zip(video.seconds, video.frames, strict=True):
        parts.append({"type": "text", "text": f"<{second:.1f} seconds>"})
        parts.append(_image_part(frame))
    return parts


def _to_png(image: bytes) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.save(file, "PNG")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSample("image", f"cannot convert {len(image)} bytes to PNG: {error}") from error
    return file.getvalue()
