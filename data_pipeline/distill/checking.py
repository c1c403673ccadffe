"""Checks a teacher's responses: by the answer checker, then by a judge where one is configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.distill.responses import TeacherResponse
from data_pipeline.distill.teacher import build_target, clean_question, parse_response, question_turns
from data_pipeline.encode.turns import SPECIAL_TOKENS, check_response
from data_pipeline.errors import BadSample
from data_pipeline.served.judge import Judge
from data_pipeline.types import Sample
from data_pipeline.verify.pool import VerifyPool


def check_responses(
    pool: VerifyPool, responses: Sequence[TeacherResponse], checker: str
) -> list[TeacherResponse]:
    """Returns the responses with their verdicts.

    The text that is checked is the one to be learned; where a response lacks the form, it is the response itself.
    """
    parsed = [parse_response(response.response or "") for response in responses]
    pairs = [
        (build_target(thought, final) if thought and final else response.response or "", response.answer)
        for response, (thought, final) in zip(responses, parsed, strict=True)
    ]
    checked = []
    for response, verdict, (thought, final) in zip(responses, pool.check_many(pairs), parsed, strict=True):
        cut = {"stop": "", "length": "truncated"}.get(response.finish_reason, response.finish_reason)
        lacks = "no_think" if not thought else "" if final else "no_answer"
        wrong = f"check_{verdict.decided_by}" if verdict.decided_by in ("timeout", "error") else "wrong"
        if cut:
            verdict = replace(verdict, accuracy=0.0, extracted="")
        unfit = "" if cut or lacks else _find_unfit(build_target(thought, final))
        reason = cut or lacks or (unfit and "text") or ("" if verdict.accuracy else wrong)
        found = replace(response.with_verdict(verdict), checker=checker, reason=reason, detail=unfit)
        checked.append(replace(found, judge_prompt_len=0, judge_response_len=0))
    return checked


def _find_unfit(target: str) -> str:
    """Returns why no student can learn the text: it holds special tokens, an image's mark, or half a character."""
    try:
        check_response(target, SPECIAL_TOKENS)
    except BadSample as error:
        return str(error)
    return ""


async def judge_response(judge: Judge, sample: Sample, response: TeacherResponse) -> TeacherResponse:
    """Returns a response that the rules found wrong, with the judge's verdict on it.

    Without a clear verdict it stays wrong, for the reason not_judged, and counts as not checked.
    """
    question = "\n".join(clean_question(turn.content) for turn in question_turns(sample))
    said = await judge.ask(question, response.answer, response.extracted)
    response = replace(response, judge_prompt_len=said.prompt_len, judge_response_len=said.response_len)
    was_wrong = response.reason == "wrong"
    if said.is_equal is None:
        reason = "not_judged" if was_wrong else response.reason
        return replace(response, checker="", reason=reason, detail=said.detail)
    if not said.is_equal:
        return replace(response, detail=said.detail)
    reason = "" if was_wrong else response.reason
    return replace(response, accuracy=1.0, decided_by="judge", reason=reason, detail=said.detail)
