"""Verdicts on answers of a served model: by the one answer checker, and then by a judge where one is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.distill.answers import Answer
from data_pipeline.distill.teacher import clean_question, parse_response, question_turns, target
from data_pipeline.served.client import ChatClient
from data_pipeline.served.judge import judge
from data_pipeline.types import Sample
from data_pipeline.verify.check import Verdict
from data_pipeline.verify.pool import VerifyPool


def check_answers(pool: VerifyPool, answers: Sequence[Answer], checker: str) -> list[Answer]:
    """The answers with their verdicts. What is checked is what would be learned; without its form, the response."""
    parsed = [parse_response(answer.response or "") for answer in answers]
    texts = [
        target(thought, final) if thought and final else answer.response or ""
        for answer, (thought, final) in zip(answers, parsed, strict=True)
    ]
    verdicts = pool.check_many([(text, answer.answer) for text, answer in zip(texts, answers, strict=True)])
    return [
        _checked(answer, verdict, form, checker)
        for answer, verdict, form in zip(answers, verdicts, parsed, strict=True)
    ]


async def judge_answer(client: ChatClient, sample: Sample, answer: Answer) -> Answer:
    """An answer that the rules found wrong, with the judge's word on it.

    Without a clear word it stays wrong, for the reason not_judged, and counts as not checked.
    """
    question = "\n".join(clean_question(turn.content) for turn in question_turns(sample))
    is_equal, detail = await judge(client, question, answer.answer, answer.extracted)
    was_wrong = answer.reason == "wrong"
    if is_equal is None:
        reason = "not_judged" if was_wrong else answer.reason
        return replace(answer, checker="", reason=reason, detail=detail)
    if not is_equal:
        return replace(answer, detail=detail)
    return replace(
        answer, accuracy=1.0, decided_by="judge", reason="" if was_wrong else answer.reason, detail=detail
    )


def _checked(answer: Answer, verdict: Verdict, parsed: tuple[str, str], checker: str) -> Answer:
    thought, final = parsed
    ended = {"stop": "", "length": "truncated"}.get(answer.finish_reason, answer.finish_reason)
    lacks = "no_think" if not thought else "" if final else "no_answer"
    wrong = f"check_{verdict.decided_by}" if verdict.decided_by in ("timeout", "error") else "wrong"
    return replace(
        answer,
        checker=checker,
        accuracy=0.0 if ended else verdict.accuracy,
        format=verdict.format,
        extracted="" if ended else verdict.extracted,
        decided_by=verdict.decided_by,
        reason=ended or lacks or ("" if verdict.accuracy else wrong),
        detail="",
    )
