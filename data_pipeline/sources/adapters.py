"""The corpora of both recipes: raw row -> Sample, one adapter per corpus, by name.

Each docstring says which published rows the adapter reads and whether that schema was seen ("confirmed": in the
dataset card, the authors' code or code that trains on it) or is assumed. Where the released recipe ships a
corpus in its own common row format, the adapter takes those rows too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from data_pipeline.errors import BadSample, mismatch
from data_pipeline.sources.row_shapes import choice_row, messages, prompts, question_row, questions
from data_pipeline.sources.rows import Row, build_sample, tagged_answer, text
from data_pipeline.types import Message, Sample

Adapter = Callable[[Row], Sample]


# --- SFT


def llava_cot(row: Row) -> Sample:
    """Xkev/LLaVA-CoT-100k, train.jsonl: {id, image: path, conversations: [{from, value}]}.

    Confirmed from code that trains on it; or the recipe's {id, messages}. The answer is the <CONCLUSION>.
    """

    def conclusion(response: str) -> str:
        _, _, rest = response.partition("<CONCLUSION>")
        return tagged_answer(response) or rest.partition("</CONCLUSION>")[0].strip()

    return messages(row, answer=conclusion)


def openvlthinker(row: Row) -> Sample:
    """ydeng9/OpenVLThinker-sft-iter3: {messages: [{role, content}], images: [...]}.

    Confirmed from the authors' training readme; answers stand in <answer> tags.
    """
    return messages(row)


def we_math_sft(row: Row) -> Sample:
    """We-Math/We-Math2.0-SFT: {messages: [{role, content}], images?: [...]}.

    Assumed: the authors train it with ms-swift, whose format this is, and the recipe ships {id, messages}.
    """
    return messages(row)


def mmr1(row: Row) -> Sample:
    """MMR1/MMR1-SFT, sft.json: {conversations: [{from, value}], images: [path]}.

    `conversations` confirmed from the dataset card, `images` assumed; or the recipe's mmr1_filtered.parquet.
    """
    return messages(row, teacher="Gemini-2.5 Pro/Flash")


def miromind_m1(row: Row) -> Sample:
    r"""miromind-ai/MiroMind-M1-SFT-719K: {id, question, response}, text only, the answer in a \boxed{}.

    Confirmed from code that trains on it; or the recipe's m1_sft.parquet, {id, messages}.
    """
    if "messages" in row.fields:
        return messages(row)
    response = text(row, "response")
    return build_sample(
        row,
        messages=[
            Message(role="user", content=text(row, "question")),
            Message(role="assistant", content=response),
        ],
        images=(),
        answer=tagged_answer(response),
        row_id=row.fields.get("id"),
    )


def openmmreasoner_sft(row: Row) -> Sample:
    """OpenMMReasoner/OpenMMReasoner-SFT-874K: {id, messages: [{role, content: [{type, text | image_url}]}]}.

    Confirmed from the released pipeline. Images are paths into the release's image folder.
    """
    return messages(row, teacher="Qwen3-VL-235B-A22B-Instruct")


def mmfinereason(row: Row) -> Sample:
    """OpenDataArena/MMFineReason-*: {source, id, question, answer, image, qwen3vl_235b_thinking_response, ...}.

    Confirmed from code that trains on it. Rows without a response (the split `rl`) become questions.
    """
    thinking = "qwen3vl_235b_thinking_response"
    return question_row(
        row,
        "question",
        row_id=("source", "id"),  # ids are those of the corpora it was made from
        response=thinking if row.fields.get(thinking) else "",
        kind="source",
        keep=("source", "pass_rate", "is_consistent"),
        teacher="Qwen3-VL-235B-A22B-Thinking",
    )


# --- RL


def _released_or(row: Row, published: Adapter) -> Sample:
    """The recipe's released parquet of a corpus has the columns of `prompts`, whatever the corpus had."""
    return prompts(row) if "reward_model" in row.fields else published(row)


def openmmreasoner_rl(row: Row) -> Sample:
    """OpenMMReasoner/OpenMMReasoner-RL-74K: {prompt, images, reward_model, data_source, ability, ids, ...}.

    Confirmed from the released code and from code that trains on it; one --subset per corpus.
    """
    return prompts(row)


def mmk12(row: Row) -> Sample:
    """FanqingM/MMK12: {id, question, answer, subject, image}. Confirmed from the dataset card."""
    return _released_or(row, lambda raw: question_row(raw, "question", kind="subject"))


def thinklite_hard(row: Row) -> Sample:
    """russwang/ThinkLite-VL-hard-11k: {id, problem, answer, image: bytes}. Confirmed from code that trains on it."""
    return _released_or(row, lambda raw: question_row(raw, "problem"))


def virl39k(row: Row) -> Sample:
    r"""TIGER-Lab/ViRL39K: {qid, question, answer: \boxed{...}, image: [path], category, source, PassRate_*}.

    Confirmed from the dataset card and code that trains on it. Unpack its images.zip and give --images.
    """
    keep = ("category", "source", "PassRate_32BTrained", "PassRate_7BBase")
    return _released_or(
        row, lambda raw: question_row(raw, "question", row_id=("qid",), kind="category", keep=keep)
    )


def we_math_standard(row: Row) -> Sample:
    """We-Math/We-Math2.0-Standard, split `standard`: {question, answer, image}. Confirmed from code that reads it."""
    return _released_or(row, lambda raw: question_row(raw, "question", row_id=("idx",), keep=_WE_MATH))


def we_math_pro(row: Row) -> Sample:
    """We-Math/We-Math2.0-Pro, split `pro`: {idx, question_id, question, answer, difficulty, knowledge points, image}.

    Confirmed from code that reads it.
    """
    return _released_or(row, lambda raw: question_row(raw, "question", row_id=("idx",), keep=_WE_MATH))


_WE_MATH = ("question_id", "difficulty", "knowledge points")


def puzzlevqa(row: Row) -> Sample:
    """declare-lab/PuzzleVQA: {question, answer, options, image: path, caption, explanation, deduction}.

    Confirmed from the authors' code. Options become lettered lines and the answer a letter: ours.
    """
    return _released_or(row, lambda raw: choice_row(raw, raw.fields.get("options"), keep=("deduction",)))


def algopuzzlevqa(row: Row) -> Sample:
    """declare-lab/AlgoPuzzleVQA: {question, answer, options, image: path}.

    Confirmed from the authors' code. Options become lettered lines and the answer a letter: ours.
    """
    return _released_or(row, lambda raw: choice_row(raw, raw.fields.get("options"), keep=()))


def tqa(row: Row) -> Sample:
    """AllenAI's TQA, tqa_v1_train.json: the diagram questions of its lessons, each with its imagePath.

    Confirmed from code that reads it; that the recipe took the diagram questions is assumed from their number.
    """
    return _released_or(row, lambda raw: choice_row(raw, raw.fields.get("options"), keep=("lesson",)))


def tqa_questions(lesson: Mapping[str, object]) -> Iterator[Mapping[str, object] | BadSample]:
    """The diagram questions of one lesson as rows of {id, question, options, answer, image}."""
    groups = lesson.get("questions")
    asked = groups.get("diagramQuestions") if isinstance(groups, Mapping) else None
    if not isinstance(asked, Mapping):
        yield (
            lesson
            if "reward_model" in lesson
            else mismatch("questions.diagramQuestions", "questions by id", groups, "give tqa_v1_train.json")
        )
        return
    for question_id, question in asked.items():
        try:
            choices = {key: choice["processedText"] for key, choice in question["answerChoices"].items()}
            yield {
                "id": question_id,
                "question": question["beingAsked"]["processedText"],
                "options": list(choices.values()),
                "answer": choices[question["correctAnswer"]["processedText"]],
                "image": question["imagePath"],
                "lesson": lesson.get("lessonName"),
            }
        except (KeyError, TypeError, AttributeError) as error:
            yield BadSample("schema", f"{question_id}: wanted choices, answer and imagePath, saw no {error}")


CORPORA: dict[str, Adapter] = {
    adapter.__name__: adapter
    for adapter in (
        messages,
        questions,
        prompts,
        llava_cot,
        openvlthinker,
        we_math_sft,
        mmr1,
        miromind_m1,
        openmmreasoner_sft,
        mmfinereason,
        openmmreasoner_rl,
        mmk12,
        thinklite_hard,
        virl39k,
        we_math_standard,
        we_math_pro,
        puzzlevqa,
        algopuzzlevqa,
        tqa,
    )
}

EXPANSIONS: dict[str, Callable[[Mapping[str, object]], Iterator[Mapping[str, object] | BadSample]]] = {
    "tqa": tqa_questions
}
"""Corpora whose published rows hold several questions each."""
