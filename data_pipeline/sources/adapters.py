"""Adapters of the recipes' corpora and of your own data: raw row -> Sample, by the corpus's name.

docs/data.md says for each corpus which published columns are read, and whether that schema was seen or is assumed.
The OpenMMReasoner recipe also releases its corpora in common formats: SFT as {id, messages}, RL as verl's rows; their
adapters read both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from data_pipeline.errors import BadSample, column_error
from data_pipeline.sources.conversations import list_images, list_videos, read_conversation
from data_pipeline.sources.readers import Fields
from data_pipeline.sources.rows import (
    Row,
    build_sample,
    clean_answer,
    find_answer,
    label,
    read_text,
)
from data_pipeline.sources.text_values import is_missing, read_value
from data_pipeline.types import Message, Sample

Adapter = Callable[[Row], Sample]
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Reads {messages or conversations: [{role, content} or {from, value}], images?, answer?, id?}."""

    read_answer: Callable[[str], str] = find_answer
    """Returns the reference answer in the last response, for rows without the column `answer`."""
    teacher: str = ""

    def __call__(self, row: Row) -> Sample:
        column = "messages" if "messages" in row.fields else "conversations"
        turns, inside = read_conversation(row.fields.get(column), column)
        is_given = not is_missing(row.fields.get("answer"))
        response = turns[-1].content if turns[-1].role == "assistant" else ""
        return build_sample(
            row,
            messages=turns,
            images=list_images(row.fields, inside),
            videos=list_videos(row.fields, inside),
            answer=clean_answer(read_text(row, "answer")) if is_given else self.read_answer(response),
            row_id=label(row, "id"),
            kind=label(row, "kind"),
            keep=("source", "score"),
            teacher=self.teacher,
        )


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Reads one question per row, with its answer and images; the fields name the columns."""

    question: tuple[str, ...] = ("question",)  # the first of these that the row has
    response: str = ""  # a teacher's; rows without one become questions
    answer: str = "answer"  # "": taken from the response, which is then required
    row_id: tuple[str, ...] = ("id",)
    kind: str = "kind"
    keep: tuple[str, ...] = ()  # copied to the metadata
    teacher: str = ""

    def __call__(self, row: Row) -> Sample:
        column = next((name for name in self.question if name in row.fields), self.question[0])
        turns = [Message(role="user", content=read_text(row, column))]
        if not is_missing(row.fields.get(self.response)) or not self.answer:
            turns.append(Message(role="assistant", content=read_text(row, self.response)))
        found = clean_answer(read_text(row, self.answer)) if self.answer else find_answer(turns[-1].content)
        return build_sample(
            row,
            messages=turns,
            images=list_images(row.fields),
            videos=list_videos(row.fields),
            answer=found,
            row_id="/".join(filter(None, (label(row, name) for name in self.row_id))),
            kind=label(row, self.kind),
            keep=self.keep,
            teacher=self.teacher,
        )


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Reads {question, options, answer, image}: options become lettered lines, the answer its option's letter."""

    keep: tuple[str, ...] = ()  # copied to the metadata

    def __call__(self, row: Row) -> Sample:
        options = row.fields.get("options")
        if not isinstance(options, (list, tuple)) or not 2 <= len(options) <= len(LETTERS):
            raise column_error("options", f"a list of 2 to {len(LETTERS)} texts", options, "drop the row")
        listed = [read_value("options", option) for option in options]
        answer = read_text(row, "answer")
        if answer not in listed:
            raise BadSample("answer", f"answer: wanted one of {listed}, saw {answer!r}; drop the row")
        lines = (f"{letter}. {option}" for letter, option in zip(LETTERS, listed, strict=False))
        question = "\n".join([read_text(row, "question"), *lines])
        lettered = {**row.fields, "question": question, "answer": LETTERS[listed.index(answer)]}
        return Questions(keep=self.keep)(replace(row, fields=lettered))


def read_verl_row(row: Row) -> Sample:
    """Reads verl's RL rows: {prompt: [{role, content}], images?, reward_model: {ground_truth}}."""
    turns, inside = read_conversation(row.fields.get("prompt"), "prompt")
    reward = row.fields.get("reward_model")
    if not isinstance(reward, Mapping) or "ground_truth" not in reward:
        raise column_error("reward_model", "{ground_truth, style}", reward, "put the reference answer there")
    given = reward["ground_truth"]
    return build_sample(
        row,
        messages=turns,
        images=list_images(row.fields, inside),
        videos=list_videos(row.fields, inside),
        answer="" if given is None else clean_answer(read_value("reward_model.ground_truth", given)),
        # No row_id: `ids` and extra_info.index are places in a reading order, not names.
        kind=label(row, "data_source"),
        keep=("data_source", "ability", "ids", "avg_reward"),
    )


def find_conclusion(response: str) -> str:
    """Returns the tagged answer of a response, else the text in LLaVA-CoT's <CONCLUSION>."""
    _, _, rest = response.partition("<CONCLUSION>")
    return find_answer(response) or rest.partition("</CONCLUSION>")[0].strip()


def read_tqa(row: Row) -> Sample:
    """Reads one of the diagram questions of AllenAI's TQA that `split_tqa_lesson` yields."""
    asked: Any = row.fields
    try:
        choices = {key: choice["processedText"] for key, choice in asked["answerChoices"].items()}
        fields = {
            "id": asked["id"],
            "question": asked["beingAsked"]["processedText"],
            "options": list(choices.values()),
            "answer": choices[asked["correctAnswer"]["processedText"]],
            "image": asked["imagePath"],
            "lesson": asked.get("lesson"),
        }
    except (KeyError, TypeError, AttributeError) as error:
        wanted = "a question with beingAsked, answerChoices, correctAnswer and imagePath"
        raise column_error("diagramQuestions", wanted, asked, "give tqa_v1_train.json") from error
    return Choices(keep=("lesson",))(replace(row, fields=fields))


def split_tqa_lesson(lesson: Fields) -> Iterator[Fields]:
    """Yields the diagram questions of a lesson of tqa_v1_train.json; any other row as it is."""
    groups = lesson.get("questions")
    asked = groups.get("diagramQuestions") if isinstance(groups, Mapping) else None
    if not isinstance(asked, Mapping):
        yield lesson
        return
    for name, question in asked.items():
        columns = question if isinstance(question, Mapping) else {}
        yield {**columns, "id": name, "lesson": lesson.get("lessonName")}


@dataclass(frozen=True)
class _ChooseBy:
    """Reads rows with `column` as the recipe releases them, and others as published."""

    column: str
    released: Adapter
    published: Adapter

    def __call__(self, row: Row) -> Sample:
        return (self.released if self.column in row.fields else self.published)(row)


_rl = partial(_ChooseBy, "reward_model", read_verl_row)
_we_math = _rl(Questions(row_id=("idx",), keep=("question_id", "difficulty", "knowledge points")))


class Corpus(NamedTuple):
    """A published corpus and the adapter of its rows. It is pickled, for the workers of an import."""

    published: str
    read: Adapter
    split: Callable[[Fields], Iterator[Fields]] | None = None
    """Yields the questions of a published row that holds several; None where each row is one."""
    name: str = ""  # in CORPORA the key


CORPORA: dict[str, Corpus] = {
    # your own data
    "messages": Corpus(
        "Your own conversations: {messages: [{role, content}], images?, answer?}", Conversations()
    ),
    "questions": Corpus(
        "Your own questions: {question, answer, images?, response?}",
        Questions(question=("question", "problem", "query"), response="response", keep=("source",)),
    ),
    "prompts": Corpus(
        "Your own rows in verl's form: {prompt, images?, reward_model: {ground_truth}}", read_verl_row
    ),
    # SFT
    "llava_cot": Corpus(
        "Xkev/LLaVA-CoT-100k, train.jsonl: {id, image, conversations}",
        Conversations(read_answer=find_conclusion),
    ),
    "openvlthinker": Corpus("ydeng9/OpenVLThinker-sft-iter3: {messages, images}", Conversations()),
    "we_math_sft": Corpus("We-Math/We-Math2.0-SFT: {messages, images}", Conversations()),
    "mmr1": Corpus(
        "MMR1/MMR1-SFT, sft.json: {conversations, images}", Conversations(teacher="Gemini-2.5 Pro/Flash")
    ),
    "miromind_m1": Corpus(
        "miromind-ai/MiroMind-M1-SFT-719K: {id, question, response}",
        _ChooseBy("messages", Conversations(), Questions(response="response", answer="")),
    ),
    "openmmreasoner_sft": Corpus(
        "OpenMMReasoner/OpenMMReasoner-SFT-874K: {id, messages}",
        Conversations(teacher="Qwen3-VL-235B-A22B-Instruct"),
    ),
    "mmfinereason": Corpus(
        "OpenDataArena/MMFineReason-*: {source, id, question, answer, image, qwen3vl_235b_thinking_response}",
        Questions(
            response="qwen3vl_235b_thinking_response",
            row_id=("source", "id"),  # ids are those of the corpora it was made from
            kind="source",
            keep=("source", "pass_rate", "is_consistent"),
            teacher="Qwen3-VL-235B-A22B-Thinking",
        ),
    ),
    # RL
    "openmmreasoner_rl": Corpus(
        "OpenMMReasoner/OpenMMReasoner-RL-74K, a --rows.subset each: {prompt, images, reward_model}",
        read_verl_row,
    ),
    "mmk12": Corpus("FanqingM/MMK12: {id, question, answer, subject, image}", _rl(Questions(kind="subject"))),
    "thinklite_hard": Corpus(
        "russwang/ThinkLite-VL-hard-11k: {id, problem, answer, image}", _rl(Questions(question=("problem",)))
    ),
    "virl39k": Corpus(
        "TIGER-Lab/ViRL39K: {qid, question, answer, image, category}; unpack images.zip, give --rows.images",
        _rl(
            Questions(
                row_id=("qid",),
                kind="category",
                keep=("category", "source", "PassRate_32BTrained", "PassRate_7BBase"),
            )
        ),
    ),
    "we_math_standard": Corpus("We-Math/We-Math2.0-Standard: {question, answer, image}", _we_math),
    "we_math_pro": Corpus("We-Math/We-Math2.0-Pro: {idx, question, answer, difficulty, image}", _we_math),
    "puzzlevqa": Corpus(
        "declare-lab/PuzzleVQA: {question, options, answer, image}", _rl(Choices(keep=("deduction",)))
    ),
    "algopuzzlevqa": Corpus("declare-lab/AlgoPuzzleVQA: {question, options, answer, image}", _rl(Choices())),
    "tqa": Corpus(
        "AllenAI's TQA, tqa_v1_train.json: diagram questions of its lessons", _rl(read_tqa), split_tqa_lesson
    ),
}


def find_corpus(corpus: str | Corpus) -> Corpus:
    """Returns the corpus of that name; one that is given as itself may be any, such as a benchmark."""
    return CORPORA[corpus]._replace(name=corpus) if isinstance(corpus, str) else corpus
