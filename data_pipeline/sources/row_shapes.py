"""The shapes that rows have, whatever the corpus: conversations, prompts with a reward, columns, choices.

The first three are also the adapters for one's own data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from data_pipeline.errors import BadSample, mismatch
from data_pipeline.sources.rows import (
    Row,
    build_sample,
    clean_answer,
    conversation,
    listed_images,
    tagged_answer,
    text,
)
from data_pipeline.types import Message, Sample

LETTERS = "ABCDEFGHIJ"


def messages(row: Row, *, answer: Callable[[str], str] = tagged_answer, teacher: str = "") -> Sample:
    """Your own conversations: {messages: [{role, content}], images?, answer?, id?}; {from, value} turns as well."""
    column = "messages" if "messages" in row.fields else "conversations"
    turns, inside = conversation(row.fields.get(column), column)
    listed = listed_images(row)
    if inside and listed:
        raise mismatch("images", "images in the messages or in a column", listed, "keep one of both")
    given = row.fields.get("answer")
    response = turns[-1].content if turns[-1].role == "assistant" else ""
    found = answer(response) if given is None or given == "" else clean_answer(str(given))
    return build_sample(
        row,
        messages=turns,
        images=inside or listed,
        answer=found,
        row_id=row.fields.get("id"),
        kind=row.fields.get("kind"),
        keep=("source", "score"),
        teacher=teacher,
    )


def questions(row: Row) -> Sample:
    """Your own questions: {question, answer, images? or image?, response?, id?}; `problem` or `query` as well."""
    column = next((name for name in ("question", "problem", "query") if name in row.fields), "question")
    response = "response" if row.fields.get("response") else ""
    return question_row(row, column, response=response, kind="kind", keep=("source",))


def prompts(row: Row) -> Sample:
    """Rows as verl's RL datasets have them: {prompt: [{role, content}], images?, reward_model: {ground_truth}}."""
    asked, inside = conversation(row.fields.get("prompt"), "prompt")
    reward = row.fields.get("reward_model")
    if not isinstance(reward, Mapping) or "ground_truth" not in reward:
        raise mismatch("reward_model", "{ground_truth, style}", reward, "put the reference answer there")
    return build_sample(
        row,
        messages=asked,
        images=inside or listed_images(row),
        answer="" if reward["ground_truth"] is None else clean_answer(str(reward["ground_truth"])),
        # No row_id: `ids` and extra_info.index are places in a reading order, not names.
        kind=row.fields.get("data_source"),
        keep=("data_source", "ability", "ids", "avg_reward"),
    )


def question_row(
    row: Row,
    question: str,
    *,
    answer: str = "answer",
    row_id: Sequence[str] = ("id",),
    response: str = "",
    kind: str = "",
    keep: Sequence[str] = (),
    teacher: str = "",
) -> Sample:
    """A row of columns; `response` names the one to learn from, "" for none, `row_id` those that name the row."""
    turns = [Message(role="user", content=text(row, question))]
    turns += [Message(role="assistant", content=text(row, response))] if response else []
    return build_sample(
        row,
        messages=turns,
        images=listed_images(row),
        answer=clean_answer(text(row, answer)),
        row_id="/".join(str(row.fields[name]) for name in row_id if row.fields.get(name) is not None),
        kind=row.fields.get(kind),
        keep=keep,
        teacher=teacher,
    )


def choice_row(row: Row, options: object, *, keep: Sequence[str]) -> Sample:
    """A question with its options as lettered lines; the answer, given as an option's text, becomes its letter."""
    if not isinstance(options, (list, tuple)) or not 2 <= len(options) <= len(LETTERS):
        raise mismatch("options", f"a list of 2 to {len(LETTERS)} texts", options, "drop the row")
    listed, answer = [str(option).strip() for option in options], text(row, "answer")
    if answer not in listed:
        raise BadSample("answer", f"answer: wanted one of {listed}, saw {answer!r}; drop the row")
    lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, listed, strict=False))
    return build_sample(
        row,
        messages=[Message(role="user", content="\n".join([text(row, "question"), *lines]))],
        images=listed_images(row),
        answer=LETTERS[listed.index(answer)],
        kind=row.fields.get("kind"),
        keep=keep,
        row_id=row.fields.get("id"),
    )
