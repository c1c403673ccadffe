"""A question as a teacher is asked it, and its response as a sample to learn from: pure functions.

The teacher's form of a question differs from the student's: another system prompt, and without the phrases that
ask for a form of the answer. Learned is the original question, with the teacher's thoughts and answer.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from data_pipeline.distill.answers import Answer
from data_pipeline.encode.image_header import MIME_TYPES, image_format
from data_pipeline.errors import BadSample
from data_pipeline.types import IMAGE_MARK, SYSTEM_PROMPT, Message, Sample

PHRASES = re.compile(
    r"Context: N/A|Output the thinking process in <think> </think> and final answer in <answer> </answer> tags\."
    r"|Answer the question using a single word or phrase\."
)
"""What corpora append to questions; the recipe takes it off before it asks the teacher."""


def teacher_messages(sample: Sample, system_prompt: str) -> list[dict[str, object]]:
    """The turns before the sample's answer as OpenAI's messages, images as data URLs.

    Raises:
        BadSample: there is no question, its marks do not fit its images, or an image cannot be read.
    """
    turns = [
        replace(turn, content=clean_question(turn.content)) if turn.role == "user" else turn
        for turn in question_turns(sample)
    ]
    system = [Message(role="system", content=system_prompt)] if system_prompt else []
    return chat_messages([*system, *turns], sample.images)


def chat_messages(turns: Sequence[Message], images: Sequence[bytes]) -> list[dict[str, object]]:
    """Turns as OpenAI's messages, with an image as a data URL where each mark stands.

    Raises:
        BadSample: the marks do not fit the images, or an image cannot be read.
    """
    marks = sum(turn.content.count(IMAGE_MARK) for turn in turns)
    if marks != len(images):
        raise BadSample("text", f"{marks} marks {IMAGE_MARK} in the text, but {len(images)} images")
    urls = iter([data_url(image) for image in images])
    return [{"role": turn.role, "content": _parts(turn.content, urls)} for turn in turns]


def question_turns(sample: Sample) -> tuple[Message, ...]:
    """The conversation up to the user's last turn, without system prompts.

    Raises:
        BadSample: it has no turn of a user at the end.
    """
    turns = [message for message in sample.messages if message.role != "system"]
    if turns and turns[-1].role == "assistant":
        turns.pop()
    if not turns or turns[-1].role != "user":
        raise BadSample("text", "no user's turn to answer")
    return tuple(turns)


def clean_question(text: str) -> str:
    """Without the phrases that the recipe takes out before it asks a teacher; image marks stay."""
    return PHRASES.sub("", text).strip()


def data_url(image: bytes) -> str:
    """A PNG or JPEG file as it is, byte for byte; any other converted to PNG.

    Raises:
        BadSample: not an image, or a broken one.
    """
    mime = MIME_TYPES.get(image_format(image))
    if not mime:
        image, mime = _to_png(image), "image/png"
    return f"data:{mime};base64,{base64.b64encode(image).decode()}"


def parse_response(text: str) -> tuple[str, str]:
    """(thoughts, answer) of a response, "" for what it lacks, by the recipe's rules.

    Thoughts may begin without `<think>` (the chat template may have written it). Without thoughts in tags, all
    before the last `<answer>` is one. An answer inside of the thoughts does not count.
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


def target(thought: str, answer: str) -> str:
    """What the student learns to write."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def distilled_samples(
    samples: Iterable[Sample],
    answers: Iterable[Answer],
    per_question: int,
    drop: Callable[[Sample, str], None] = lambda sample, reason: None,
) -> Iterator[Sample]:
    """The first `per_question` kept answers to each sample, as samples `{id}#{rollout}` in the samples' order.

    Args:
        answers: those to these samples, in their order.
        drop: is called with each right answer beyond `per_question`, and "surplus".

    Raises:
        ValueError: there are kept answers to a sample that does not come, or comes in another order.
    """
    kept = groupby((answer for answer in answers if not answer.reason), lambda answer: answer.id)
    id, group = next(kept, ("", ()))
    for sample in samples:
        if sample.id != id:
            continue
        for number, answer in enumerate(group):
            learned = _distilled(sample, answer)
            if number < per_question:
                yield learned
            else:
                drop(learned, "surplus")
        id, group = next(kept, ("", ()))
    if id:
        raise ValueError(
            f"there are answers to {id!r}, but no such question can be read in its place; `omr data validate` the "
            "questions, and ask about them in another folder where they were changed"
        )


def _distilled(sample: Sample, answer: Answer) -> Sample:
    learned = target(*parse_response(answer.response or ""))
    lineage = {
        "question": sample.id,
        "teacher": answer.teacher,
        "rollout": answer.rollout,
        "accuracy": answer.accuracy,
        "decided_by": answer.decided_by,
    }
    return Sample(
        id=f"{sample.id}#{answer.rollout}",
        source=sample.source,
        messages=(
            Message(role="system", content=SYSTEM_PROMPT),
            *question_turns(sample),
            Message(role="assistant", content=learned),
        ),
        images=sample.images,
        answer=sample.answer,
        metadata=sample.metadata | lineage,
    )


def _parts(text: str, images: Iterator[str]) -> str | list[dict[str, object]]:
    first, *rest = text.split(IMAGE_MARK)
    if not rest:
        return text
    parts: list[dict[str, object]] = [{"type": "text", "text": first}]
    for piece in rest:
        parts.append({"type": "image_url", "image_url": {"url": next(images)}})
        parts.append({"type": "text", "text": piece})
    return [part for part in parts if part.get("text") != ""]


def _to_png(image: bytes) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.save(file, "PNG")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSample("image", f"cannot convert {len(image)} bytes to PNG: {error}") from error
    return file.getvalue()
