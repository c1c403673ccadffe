"""The one client of OpenAI-compatible servers: many requests at once, each until it has an answer or a reason.

What goes wrong is one of three things. The question is at fault (400, 413, 422): it is not asked again. The server
failed at it (other errors, a timeout, garbage): it is asked again `retries` times. The server cannot be reached or
is busy (no connection, 429, 502, 503, 504): it is asked again for `patience` seconds, so that it may be restarted.
The package's own retries are off: they are counted only, whatever went wrong, and last seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NoReturn

from tqdm import tqdm

from data_pipeline.served.config import ServerConfig

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before an attempt is repeated: doubled each time, up to the longest."""
CONNECT_TIMEOUT = 10.0
NOT_THERE = (429, 502, 503, 504)  # the server, or what stands before it, says: later
REFUSED = (400, 413, 422)  # this request is wrong, whoever asks and however often
MISTAKES = (401, 403, 404)  # so is every other one

Body = Mapping[str, object]
"""A request: the fields of a chat completion, those of the server's own included."""


class NoAnswer(Exception):
    """A request came to nothing. `reason`: refused | server | timeout | garbage | unavailable."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class ServerDown(ValueError):
    """Nothing came from the server for as long as the patience lasts."""


class _Later(Exception):
    """Out of reach or busy: waits without limit of attempts."""

    def __init__(self, detail: str, wait: float = 0.0) -> None:
        super().__init__(detail)
        self.wait = wait  # seconds the server asked for


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model answered, and what it took."""

    text: str  # with the reasoning that the server split off put back in front, in <think> tags
    finish_reason: str  # stop | length | ...
    tokens_in: int = 0
    tokens_out: int = 0
    prompt_logprobs: tuple[float, ...] = ()  # of the prompt's tokens but the first, where asked for
    seconds: float = 0.0  # of the attempt that succeeded
    attempts: int = 1
    hedged: bool = False  # sent twice because the first took long


class ChatClient:
    """Asks one server. Use it as an async context manager, inside of one event loop."""

    def __init__(self, config: ServerConfig) -> None:
        from openai import AsyncOpenAI, Timeout

        key = os.environ.get(config.api_key_env, "") if config.api_key_env else "none"
        if not key:
            raise ValueError(
                f"api_key_env={config.api_key_env}: there is no such environment variable; export it with "
                "the key, and give the variable's name here"
            )
        self.model = config.model
        self._config = config
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=key,
            max_retries=0,
            timeout=Timeout(None, connect=CONNECT_TIMEOUT),  # of the whole attempt: see _attempt
        )
        self._slots = asyncio.Semaphore(config.concurrency)
        self._last_reply = 0.0  # time
        self._is_down = False

    async def __aenter__(self) -> ChatClient:
        self.model = self.model or await self._only_model()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def ask(self, body: Body, key: str) -> Reply:
        """The reply to a chat completion. `key` names the request, so that its waits can be repeated.

        Raises:
            NoAnswer: there is none, and why.
            ServerDown: the server was out of reach for `patience` seconds.
            ValueError: the server knows no such key, model or address.
        """
        clock, waits = asyncio.get_running_loop().time, random.Random(f"{self._config.seed}/{key}")
        attempts, faults, away_since = 0, 0, 0.0
        while True:
            attempts += 1
            try:
                reply = await self._hedged(body)
            except _Later as error:
                away_since, wait, fault = away_since or clock(), error.wait, str(error)
                if clock() - away_since > self._config.patience:
                    self._give_up(away_since, fault)
                self._say_down(fault)
            except NoAnswer as error:
                faults += 1
                if error.reason == "refused" or faults > self._config.retries:
                    raise
                away_since = wait = 0.0
            else:
                self._last_reply = clock()
                self._say_up()
                return replace(reply, attempts=attempts)
            backoff = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempts - 1, 16))
            await asyncio.sleep(max(wait, backoff * waits.uniform(0.5, 1.0)))

    async def _hedged(self, body: Body) -> Reply:
        """One attempt, or two of which the first to succeed counts; the other is called off."""
        tasks = [asyncio.create_task(self._attempt(body))]
        try:
            _, late = await asyncio.wait(tasks, timeout=self._config.hedge_after or None)
            if late:
                tasks.append(asyncio.create_task(self._attempt(body)))
            return replace(await _first_success(tasks), hedged=bool(late))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, body: Body) -> Reply:
        from openai import APIConnectionError, APIStatusError

        clock = asyncio.get_running_loop().time
        async with self._slots:
            started = clock()
            try:
                async with asyncio.timeout(self._config.timeout):
                    raw = await self._client.chat.completions.with_raw_response.create(
                        model=self.model,
                        messages=[],
                        extra_body=dict(body),  # the body's own messages replace the empty ones
                    )
                    content = raw.http_response.content
            except TimeoutError:
                raise NoAnswer("timeout", f"no answer within {self._config.timeout:g} s") from None
            except APIConnectionError as error:
                raise _Later(f"{error} {error.__cause__}") from error
            except APIStatusError as error:
                self._sort_out(error.status_code, str(error), error.response.headers.get("retry-after", ""))
            return replace(read_reply(content), seconds=clock() - started)

    def _sort_out(self, status: int, detail: str, retry_after: str) -> NoReturn:
        if status in MISTAKES:
            raise ValueError(
                f"{self._config.base_url} says to model={self.model!r}: {detail}; check base_url, model and "
                "api_key_env"
            )
        if status in NOT_THERE:
            wait = float(retry_after) if retry_after.isdecimal() else 0.0
            raise _Later(detail, min(wait, LONGEST_WAIT))
        raise NoAnswer("refused" if status in REFUSED else "server", detail[:1_000])

    async def _only_model(self) -> str:
        from openai import APIConnectionError, APIStatusError

        clock = asyncio.get_running_loop().time
        started = clock()
        while True:
            try:
                names = [model.id async for model in self._client.models.list()]
                break
            except (APIConnectionError, APIStatusError) as error:
                if isinstance(error, APIStatusError) and error.status_code not in NOT_THERE:
                    raise ValueError(
                        f"{self._config.base_url} lists no models ({error}); give model"
                    ) from error
                if clock() - started > self._config.patience:
                    self._give_up(started, str(error))
                self._say_down(str(error))
            await asyncio.sleep(1.0)
        self._say_up()
        if len(names) != 1:
            raise ValueError(
                f"{self._config.base_url} serves {', '.join(names) or 'no model'}; say which: model"
            )
        return names[0]

    def _give_up(self, since: float, detail: str) -> NoReturn:
        if self._last_reply > since:  # others were answered meanwhile
            raise NoAnswer("unavailable", detail)
        raise ServerDown(
            f"{self._config.base_url} did not answer for patience={self._config.patience:g} s ({detail}); "
            "start the server, and give the same command again: it continues where this one stopped"
        )

    def _say_down(self, detail: str) -> None:
        if not self._is_down:
            tqdm.write(
                f"{self._config.base_url} cannot be reached or is busy ({detail}); waiting up to "
                f"{self._config.patience:g} s",
                file=sys.stderr,
            )
        self._is_down = True

    def _say_up(self) -> None:
        if self._is_down:
            tqdm.write(f"{self._config.base_url} answers again", file=sys.stderr)
        self._is_down = False


async def _first_success(tasks: list[asyncio.Task[Reply]]) -> Reply:
    """The first reply; where all attempts fail, the error of the first."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if found := [task for task in done if not task.exception()]:
            return found[0].result()
    return tasks[0].result()


def read_reply(content: bytes) -> Reply:
    """A chat completion's body, which may be anything.

    Raises:
        NoAnswer: garbage, with what is wrong with it.
    """
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message, finish_reason = choice["message"], choice["finish_reason"]
        text, reasoning = message.get("content"), message.get("reasoning") or message.get("reasoning_content")
        usage = body.get("usage") or {}
        reply = Reply(
            text=_joined(text, reasoning),
            finish_reason=finish_reason,
            tokens_in=int(usage.get("prompt_tokens") or 0),
            tokens_out=int(usage.get("completion_tokens") or 0),
            prompt_logprobs=_logprobs(body.get("prompt_logprobs") or []),
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise NoAnswer("garbage", f"{error!r} in {content[:200]!r}") from error
    if not isinstance(finish_reason, str) or finish_reason in ("abort", "error"):
        raise NoAnswer("garbage", f"finish_reason {finish_reason!r}")
    return reply


def _joined(text: object, reasoning: object) -> str:
    if not isinstance(text, str | None) or not isinstance(reasoning, str | None) or text is reasoning is None:
        raise TypeError(f"content {text!r}, reasoning {reasoning!r}")
    joined = f"<think>{reasoning}</think>{text or ''}" if reasoning else text or ""
    return joined.encode(errors="replace").decode()  # JSON can hold halves of characters, files cannot


def _logprobs(positions: list[dict[str, Any] | None]) -> tuple[float, ...]:
    """vLLM's list of {token id: {logprob, ...}}, null for the first token, which nothing predicts."""
    return tuple(float(next(iter(position.values()))["logprob"]) for position in positions if position)
