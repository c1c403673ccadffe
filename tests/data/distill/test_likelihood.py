"""Likelihoods of responses by their tokens, and the responses that are kept by them."""

from __future__ import annotations

import json
import urllib.request

import pytest

from data_pipeline.distill.likelihood import mean_answer_logprob, mean_logprob, rank_responses
from data_pipeline.distill.responses import TeacherResponse
from data_pipeline.served.client import read_reply
from tests.helpers.model_server import ModelServer


def tokens(*texts: str) -> list[tuple[bytes, float]]:
    """Returns tokens whose log-probabilities are -1, -2, -3, ..."""
    return [(text.encode(), -float(number)) for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("texts", "mean"),
    [
        (("<think>x</think>", "<answer>", "4", "2", "</answer>", ""), -3.5),
        (("I add.", "<ans", "wer>4", "2</", "answer>"), -3.5),  # tokens that hold some of the answer count
        (("<answer>", " ", "4", " ", "</answer>"), -3.0),  # white space around it does not
        (("<answer>", "1", "</answer>", "<answer>", "2", "</answer>"), -5.0),  # the last one
        (("<answer>", "4"), None),
        (("<answer>", " ", "</answer>"), None),
        (("no", " tags"), None),
        ((), None),
    ],
)
def test_likelihood_of_the_answer_is_the_mean_over_its_tokens(texts: tuple[str, ...], mean: float | None):
    assert mean_answer_logprob(tokens(*texts)) == mean


def test_likelihood_of_a_response_does_not_grow_with_its_length():
    assert mean_logprob(tokens("a")) == -1.0 and mean_logprob([(b"a", -1.0)] * 9) == -1.0
    assert mean_logprob(()) is None


def test_tokens_are_read_from_a_reply():
    half = "²".encode()
    rows = [
        {"token": "a", "logprob": -0.5, "bytes": [97]},
        {"token": "\ufffd", "logprob": -1, "bytes": list(half[:1])},
        {"token": "b", "logprob": -2.0},
    ]
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": rows}}
    reply = read_reply(json.dumps({"choices": [choice]}).encode())
    assert reply.tokens == ((b"a", -0.5), (half[:1], -1.0), (b"b", -2.0))
    for nothing in (None, {}, {"content": None}):
        assert not read_reply(json.dumps({"choices": [choice | {"logprobs": nothing}]}).encode()).tokens


def respond(rollout: int, answer: float | None, mean: float | None) -> TeacherResponse:
    return TeacherResponse(id="q", rollout=rollout, response="x", answer_logprob=answer, mean_logprob=mean)


def test_the_likeliest_come_first_and_equals_in_their_order():
    """Last is an answer that was not found among the tokens."""
    found = [respond(0, -3.0, -1.0), respond(1, -1.0, -2.0), respond(2, -1.0, -0.5), respond(3, None, -1.5)]
    orders = {"first": [0, 1, 2, 3], "likeliest_answer": [1, 2, 0, 3], "likeliest": [2, 0, 3, 1]}
    for keep, order in orders.items():
        assert [each.rollout for each in rank_responses(found, keep)] == order  # pyright: ignore


def test_likelihoods_are_compared_only_where_all_are_known():
    """Responses asked for without log-probabilities would lose to every later one."""
    found = [respond(0, None, None), respond(1, -1.0, -2.0), respond(2, None, None)]
    assert len(list(rank_responses(found[:1], "likeliest"))) == 1, "one alone needs no likelihood"
    assert len(list(rank_responses(found, "first"))) == 3
    for keep in ("likeliest_answer", "likeliest"):
        with pytest.raises(
            ValueError, match=rf"keep={keep} needs .* all 3 right .* 'q', but 2 came without: 0, 2\."
        ):
            rank_responses(found, keep)  # pyright: ignore


@pytest.mark.heavy
def test_likelihood_is_what_the_server_says_when_it_reads_the_response(server: ModelServer):
    """Before temperature, and over the tokens that were sampled, which need not be those of the text."""

    def post(path: str, body: dict) -> bytes:
        data, kind = json.dumps(body | {"model": "tiny"}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/{path}", data, kind)
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.read()

    sampling = {"max_tokens": 24, "temperature": 0.5, "seed": 1, "logprobs": True, "return_token_ids": True}
    asked = {"messages": [{"role": "user", "content": "What is 3 + 4?"}]} | sampling
    content = post("chat/completions", asked)
    said = json.loads(content)
    prompt, response = said["prompt_token_ids"], said["choices"][0]["token_ids"]
    reading = {"prompt": prompt + response, "max_tokens": 1, "prompt_logprobs": 0}
    rows = json.loads(post("completions", reading))["choices"][0]["prompt_logprobs"][len(prompt) :]
    read = [row[str(token)]["logprob"] for row, token in zip(rows, response, strict=True)]
    found = read_reply(content).tokens
    assert [logprob for _, logprob in found] == pytest.approx(read, abs=1e-3)
    assert mean_logprob(found) == pytest.approx(sum(read) / len(read), abs=1e-3)
