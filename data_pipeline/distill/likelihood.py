"""How likely a model found its response: means of the log-probabilities of its tokens, pure functions.

A mean over tokens is a likelihood normalized by length. That of the answer alone, given the question and the thoughts,
ranks the right responses to a question in MMVistaReason (arXiv 2610.01352).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from data_pipeline.distill.config import Keep
from data_pipeline.distill.responses import TeacherResponse

Tokens = Sequence[tuple[bytes, float]]
"""Text and log-probability of each token of a response."""


def mean_logprob(tokens: Tokens) -> float | None:
    """Returns the mean over all tokens; None where there are none."""
    return sum(logprob for _, logprob in tokens) / len(tokens) if tokens else None


def mean_answer_logprob(tokens: Tokens) -> float | None:
    """Returns the mean over the tokens between the last `<answer>` and its end; None where there are none.

    A token that holds characters of the answer and others, such as `4<`, counts.
    """
    text = b"".join(token for token, _ in tokens)
    head, is_begun, tail = text.rpartition(b"<answer>")
    answer, is_ended, _ = tail.partition(b"</answer>")
    if not (is_begun and is_ended and answer.strip()):
        return None
    first = len(head) + len(is_begun) + len(answer) - len(answer.lstrip())
    last = first + len(answer.strip())
    inside, place = list[tuple[bytes, float]](), 0
    for token, logprob in tokens:
        if place < last and place + len(token) > first:
            inside.append((token, logprob))
        place += len(token)
    return mean_logprob(inside)


def rank_responses(responses: Iterable[TeacherResponse], keep: Keep) -> Iterable[TeacherResponse]:
    """Returns the responses to one question, those to keep first; equals stay in their order.

    An answer that is not found among a response's tokens is the least likely.

    Raises:
        ValueError: there are several, and the tokens of one or more have no log-probabilities.
    """
    if keep == "first":
        return responses
    responses = list(responses)
    lacking = [
        f"{r.rollout} of {r.teacher}" if r.teacher else f"{r.rollout}"
        for r in responses
        if r.mean_logprob is None
    ]
    if len(responses) > 1 and lacking:
        raise ValueError(
            f"keep={keep} needs the log-probabilities of all {len(responses)} right responses to {responses[0].id!r}, "
            f"but {len(lacking)} came without: {', '.join(lacking)}. They were not asked for, or the server sends "
            "none; ask again in another folder, where this keep asks for them, or take keep=first"
        )
    found = [r.answer_logprob if keep == "likeliest_answer" else r.mean_logprob for r in responses]
    ranks = [-inf if logprob is None else logprob for logprob in found]
    return [responses[place] for place in sorted(range(len(ranks)), key=lambda place: -ranks[place])]
