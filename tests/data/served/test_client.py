"""Replies as a server may send them, and requests to servers that are away, slow or wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import replace

import pytest

from data_pipeline.served.client import ChatClient, NoResponse, Reply, ServerDown, read_reply
from data_pipeline.served.config import JudgeConfig, ServerConfig
from tests.helpers.adding_teacher import AddingTeacher, right
from tests.helpers.flaky_proxy import free_port

BODY = {"messages": [{"role": "user", "content": "What is 1 + 2?"}]}


def ask(config: ServerConfig, count: int = 1) -> list[Reply | BaseException]:
    """Sends `count` equal requests at once; returns their replies or errors."""

    async def ask_all() -> list[Reply | BaseException]:
        async with ChatClient(config) as client:
            asked = (client.ask(BODY, f"request {number}") for number in range(count))
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask_all())


def reply(**message: object) -> bytes:
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()


def test_reasoning_that_the_server_split_off_is_put_back():
    assert (
        read_reply(reply(content="<answer>b</answer>", reasoning="a")).text
        == "<think>a</think><answer>b</answer>"
    )
    assert read_reply(reply(content="b", reasoning_content="a")).text == "<think>a</think>b"
    assert read_reply(reply(content=None, reasoning="a")).text == "<think>a</think>"
    assert read_reply(reply(content="b", reasoning=None)).text == "b"
    assert read_reply(reply(content="")).text == ""
    assert read_reply(reply(content="half \ud83d")).text == "half ?"


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"3", b"{}", b'{"choices": null}', b'{"choices": []}', b'{"choices": [{}]}', b"\xff\xfe",
     b"[" * 100_000, b'{"choices": [{"message": {"content": "a"}}]}', reply(), reply(content=None), reply(content=3),
     reply(content=["a"]), reply(content="a").replace(b"stop", b"abort"), reply(content="a").replace(b'"stop"', b"3")],
    ids=range(17),
)  # fmt: skip
def test_garbage_is_no_response(content: bytes):
    with pytest.raises(NoResponse) as failure:
        read_reply(content)
    assert failure.value.reason == "garbage"


def test_request_is_repeated_after_server_errors():
    with AddingTeacher() as server:
        server.respond = lambda number, total: right(total) if number == 2 else 500
        config = ServerConfig(base_url=server.url, retries=2)
        (reply,) = ask(config)
        assert isinstance(reply, Reply) and (reply.text, reply.attempts) == (right(3), 3)
        (failed,) = ask(replace(config, retries=1))
        assert isinstance(failed, NoResponse) and failed.reason == "server"
        assert len(server.questions) == 5


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refused_request_is_not_repeated(status: int):
    with AddingTeacher() as server:
        server.respond = lambda number, total: status
        (failed,) = ask(ServerConfig(base_url=server.url))
        assert isinstance(failed, NoResponse) and failed.reason == "refused" and len(server.questions) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_fatal_status_is_a_user_error(status: int):
    with AddingTeacher() as server:
        server.respond = lambda number, total: status
        (failed,) = ask(ServerConfig(base_url=server.url))
        assert type(failed) is ValueError and "check base_url, model" in str(failed)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_server_is_waited_for(status: int, capsys: pytest.CaptureFixture[str]):
    with AddingTeacher() as server:
        server.respond = lambda number, total: status if number < 2 else right(total)
        (reply,) = ask(ServerConfig(base_url=server.url, retries=0))
        assert isinstance(reply, Reply) and reply.attempts == 3
    said = capsys.readouterr().err
    assert said.count("is busy") == said.count("responds again") == 1


def test_requests_begin_at_equal_distances():
    """So many in a second, also when all are asked for at once; the first may take until the second is due."""
    times: list[float] = []
    with AddingTeacher() as server:
        server.respond = lambda number, total: times.append(time.monotonic()) or right(total)
        ask(ServerConfig(base_url=server.url, requests_per_second=20.0), count=9)
    assert len(times) == 9 and max(times) - min(times) > 0.9 * 7 / 20


def test_unreachable_server_fails_with_hint():
    config = ServerConfig(base_url=f"http://127.0.0.1:{free_port()}/v1", model="m", unavailable_timeout=0.5)
    for failed in ask(config, count=2):
        assert isinstance(failed, ServerDown)
        assert "unavailable_timeout=0.5" in str(failed) and "same command again" in str(failed)


def test_server_that_accepts_and_never_answers_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    """As one whose process is stopped."""
    monkeypatch.setattr("data_pipeline.served.client.LIST_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        url = f"http://127.0.0.1:{stopped.getsockname()[1]}/v1"
        with pytest.raises(ServerDown, match="its list of models did not come within 0.2 s"):
            ask(ServerConfig(base_url=url, unavailable_timeout=0.1))


def test_server_without_a_model_name_needs_exactly_one_model():
    with AddingTeacher() as server:

        async def model() -> str:
            async with ChatClient(ServerConfig(base_url=server.url)) as client:
                return client.model

        assert asyncio.run(model()) == "adder"


def test_missing_api_key_is_named():
    with pytest.raises(ValueError, match="api_key_env=NO_SUCH_KEY.*export"):
        ChatClient(ServerConfig(api_key_env="NO_SUCH_KEY"))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("base_url", "localhost:8000", "must begin with http"),
        ("base_url", "http://me:key@host/v1", "use api_key_env"),
        ("base_url", "https://host/v1?api_key=secret", "use api_key_env"),
        ("concurrency", 0, "between 1 and 1000"),
        ("timeout", 0.0, "above 0"),
        ("unavailable_timeout", -1.0, "at least 0"),
        ("requests_per_second", -1.0, "at least 0"),
    ],
)
def test_wrong_server_settings_are_named(field: str, value: object, words: str):
    with pytest.raises(ValueError, match=words):
        ServerConfig(**{field: value})  # pyright: ignore


def test_judge_needs_an_address():
    assert JudgeConfig().server is None
    fields = {"base_url": "http://host/v1", "model": "m", "api_key_env": "KEY", "concurrency": 3}
    fields |= {"requests_per_second": 0.5, "timeout": 7.0, "retries": 1, "unavailable_timeout": 9.0}
    assert JudgeConfig(**fields).server == ServerConfig(**fields)  # pyright: ignore
    with pytest.raises(ValueError, match="must begin with http"):
        JudgeConfig(base_url="nowhere")
