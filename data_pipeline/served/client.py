"""Client of OpenAI-compatible servers: many requests at once, each repeated until it has a reply or a reason.

Errors are of three kinds. The request is at fault (400, 413, 422): it is not repeated. The server failed (other
errors, a timeout, an unreadable reply): the request is repeated `retries` times. The server is unavailable (no
connection, 429, 502, 503, 504): the request is repeated for `unavailable_timeout` seconds, so that the server can be
restarted. The openai package's own retries are off, because they stop after some seconds whatever the error.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from tqdm import tqdm

from data_pipeline.served.config import ServerConfig

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a request is repeated: doubled each time, up to the longest."""
CONNECT_TIMEOUT = 10.0
LIST_TIMEOUT = 30.0
"""Seconds in which a server that runs names its models."""
RETRYABLE = (429, 502, 503, 504)  # the server, or a proxy before it, is busy or away
REFUSED = (400, 413, 422)  # this request is wrong
FATAL = (401, 403, 404)  # every request would fail

Body = Mapping[str, object]
"""A request: the fields of a chat completion, and those that only the server knows."""


class NoResponse(Exception):
    """A request failed. `reason`: refused | server | timeout | garbage | unavailable."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class ServerDown(ValueError):
    """The server was unavailable for longer than `unavailable_timeout`."""


class _Unavailable(Exception):
    """The server cannot be reached or is busy."""

    def __init__(self, detail: str, wait: float = 0.0) -> None:
        super().__init__(detail)
        self.wait = wait  # seconds the server asked for


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A model's response, with its length and the time it took."""

    text: str  # reasoning that the server split off stands in front, in <think> tags
    finish_reason: str  # stop | length | ...
    prompt_len: int = 0  # tokens
    response_len: int = 0  # tokens
    seconds: float = 0.0  # of the attempt that succeeded
    attempts: int = 1
    tokens: tuple[tuple[bytes, float], ...] = ()  # text and log-probability of each token, where asked for


class ChatClient:
    """Sends requests to one server. Use it as an async context manager, inside one event loop."""

    def __init__(self, config: ServerConfig) -> None:
        from openai import AsyncOpenAI, Timeout

        key = os.environ.get(config.api_key_env, "") if config.api_key_env else "none"
        if not key:
            raise ValueError(
                f"api_key_env={config.api_key_env}: this environment variable is not set; export it with the key"
            )
        self.model = config.model
        self._config = config
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=key,
            max_retries=0,
            timeout=Timeout(None, connect=CONNECT_TIMEOUT),  # _attempt limits the whole request
        )
        self._slots = asyncio.Semaphore(config.concurrency)
        self._turn = asyncio.Lock()
        self._next_start = 0.0  # time before which no request begins
        self._last_reply = 0.0  # time
        self._down_since: float | None = None  # time

    async def __aenter__(self) -> ChatClient:
        self.model = self.model or await self._only_model()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, body: Body, key: str) -> Reply:
        """Returns the reply to a chat completion. `key` names the request and seeds its waits.

        Raises:
            NoResponse: the request failed.
            ServerDown: the server was unavailable for too long.
            ValueError: the server does not know the key, model or address.
        """
        clock, waits = asyncio.get_running_loop().time, random.Random(key)
        attempts, failures, away_since = 0, 0, 0.0
        while True:
            attempts += 1
            try:
                reply = await self._attempt(body)
            except _Unavailable as error:
                away_since, wait = away_since or clock(), error.wait
                self._check_unavailable(away_since, str(error))
            except NoResponse as error:
                failures += 1
                if error.reason == "refused" or failures > self._config.retries:
                    raise
                away_since = wait = 0.0
            else:
                self._last_reply = clock()
                self._log_available(sent=clock() - reply.seconds)
                return replace(reply, attempts=attempts)
            backoff = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempts - 1, 16))
            await asyncio.sleep(max(wait, backoff * waits.uniform(0.5, 1.0)))

    async def _attempt(self, body: Body) -> Reply:
        from openai import APIConnectionError, APIStatusError

        clock = asyncio.get_running_loop().time
        async with self._slots:
            await self._wait_for_turn()
            started = clock()
            try:
                async with asyncio.timeout(self._config.timeout):
                    create = self._client.chat.completions.with_raw_response.create
                    # the body's own messages replace the empty ones
                    raw = await create(model=self.model, messages=[], extra_body=dict(body))
                    content = raw.http_response.content
            except TimeoutError:
                raise NoResponse("timeout", f"no response within {self._config.timeout:g} s") from None
            except APIConnectionError as error:
                raise _Unavailable(f"{error} {error.__cause__}") from error
            except APIStatusError as error:
                self._raise_status(
                    error.status_code, str(error), error.response.headers.get("retry-after", "")
                )
            return replace(read_reply(content), seconds=clock() - started)

    async def _wait_for_turn(self) -> None:
        """Waits until a request may begin, one at a time: `requests_per_second` begin at equal distances."""
        if not self._config.requests_per_second:
            return
        clock = asyncio.get_running_loop().time
        async with self._turn:
            await asyncio.sleep(self._next_start - clock())
            self._next_start = clock() + 1 / self._config.requests_per_second

    def _raise_status(self, status: int, detail: str, retry_after: str) -> NoReturn:
        if status in FATAL:
            raise ValueError(
                f"{self._config.base_url} says to model={self.model!r}: {detail}; check base_url, model and "
                "api_key_env"
            )
        if status in RETRYABLE:
            wait = float(retry_after) if retry_after.isdecimal() else 0.0
            raise _Unavailable(detail, min(wait, LONGEST_WAIT))
        raise NoResponse("refused" if status in REFUSED else "server", detail[:1_000])

    async def _only_model(self) -> str:
        from openai import APIConnectionError, APIStatusError

        url, started = self._config.base_url, asyncio.get_running_loop().time()
        while True:
            try:
                async with asyncio.timeout(LIST_TIMEOUT):
                    names = [model.id async for model in self._client.models.list()]
                break
            except TimeoutError:
                self._check_unavailable(started, f"its list of models did not come within {LIST_TIMEOUT:g} s")
            except (APIConnectionError, APIStatusError) as error:
                if isinstance(error, APIStatusError) and error.status_code not in RETRYABLE:
                    raise ValueError(f"{url} lists no models ({error}); set model") from error
                self._check_unavailable(started, str(error))
            await asyncio.sleep(1.0)
        self._log_available(sent=asyncio.get_running_loop().time())
        if len(names) != 1:
            raise ValueError(f"{url} serves {', '.join(names) or 'no model'}; set model to the one to ask")
        return names[0]

    def _check_unavailable(self, since: float, detail: str) -> None:
        """Says once that the server is unavailable, and raises where that has lasted too long."""
        limit = self._config.unavailable_timeout
        if asyncio.get_running_loop().time() - since > limit:
            if self._last_reply > since:  # to other requests
                raise NoResponse("unavailable", detail)
            raise ServerDown(
                f"{self._config.base_url} was unavailable for unavailable_timeout={limit:g} s ({detail}); start the "
                "server and run the same command again: it continues where this one stopped"
            )
        if self._down_since is None:
            message = f"cannot be reached or is busy ({detail}); waiting up to {limit:g} s"
            tqdm.write(f"{self._config.base_url} {message}", file=sys.stderr)
            self._down_since = asyncio.get_running_loop().time()

    def _log_available(self, sent: float) -> None:
        """Says once that the server is back. A reply to a request sent before it was lost does not show that."""
        if self._down_since is not None and sent >= self._down_since:
            tqdm.write(f"{self._config.base_url} responds again", file=sys.stderr)
            self._down_since = None


def read_reply(content: bytes) -> Reply:
    """Parses the body of a chat completion, which may be anything.

    Raises:
        NoResponse: garbage, with what is wrong with it.
    """
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message, finish_reason = choice["message"], choice["finish_reason"]
        text, reasoning = message.get("content"), message.get("reasoning") or message.get("reasoning_content")
        usage = body.get("usage") or {}
        prompt_len = int(usage.get("prompt_tokens") or 0)
        response_len = int(usage.get("completion_tokens") or 0)
        text = _join_reasoning(text, reasoning)
        tokens = _read_tokens(choice.get("logprobs"))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise NoResponse("garbage", f"{error!r} in {content[:200]!r}") from error
    if not isinstance(finish_reason, str) or finish_reason in ("abort", "error"):
        raise NoResponse("garbage", f"finish_reason {finish_reason!r}")
    return Reply(
        text=text,
        finish_reason=finish_reason,
        prompt_len=prompt_len,
        response_len=response_len,
        tokens=tokens,
    )


def _read_tokens(logprobs: Any) -> tuple[tuple[bytes, float], ...]:
    """Returns text and log-probability of each token; a token without bytes is the characters that it shows."""
    return tuple(
        (bytes(token["bytes"]) if token.get("bytes") else token["token"].encode(), float(token["logprob"]))
        for token in (logprobs or {}).get("content") or ()
    )


def _join_reasoning(text: object, reasoning: object) -> str:
    if not isinstance(text, str | None) or not isinstance(reasoning, str | None) or text is reasoning is None:
        raise TypeError(f"content {text!r}, reasoning {reasoning!r}")
    joined = f"<think>{reasoning}</think>{text or ''}" if reasoning else text or ""
    return joined.encode(errors="replace").decode()  # JSON can hold halves of characters, files cannot
