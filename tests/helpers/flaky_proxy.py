"""An HTTP proxy before a real server that fails on demand: with delays, errors, garbage or closed connections.

It records the requests, so that tests can count repeated ones, and can add fields to each.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

from tests.helpers.model_server import free_port

Body = dict[str, Any]
Fault = Callable[[int, Body], str]
"""(how often this request was seen before, its body) -> "" to pass it on, or the fault: a delay in seconds as
"late 3.5", "cut" to close the connection, a status as "503", or any other text as the body of a 200."""


def no_fault(_seen: int, _body: Body) -> str:
    return ""


class FlakyProxy:
    """Use as a context manager; `url` ends in /v1."""

    def __init__(self, upstream: str, fault: Fault = no_fault, *, extra: Body | None = None) -> None:
        self.asked: list[Body] = []  # bodies of chat completions, in order
        self.upstream, self._fault, self._extra = upstream, fault, extra or {}
        self._seen: Counter[int] = Counter()  # by the request's seed
        self._port = free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def seeds(self) -> list[int]:
        return [body["seed"] for body in self.asked]

    def __enter__(self) -> FlakyProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def _stop(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _models(self, _request: web.Request) -> web.StreamResponse:
        return await self._pass_on(self._session.get(f"{self.upstream}/v1/models"))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        seen = self._seen[body.get("seed", 0)]
        self._seen[body.get("seed", 0)] += 1
        fault = self._fault(seen, body)
        if fault.startswith("late "):
            await asyncio.sleep(float(fault.removeprefix("late ")))
        elif fault == "cut":
            assert request.transport
            request.transport.abort()
            return web.Response()
        elif fault.isdecimal():
            return web.json_response({"error": {"message": "on demand"}}, status=int(fault))
        elif fault:
            return web.Response(text=fault, content_type="application/json")
        url = f"{self.upstream}/v1/chat/completions"
        return await self._pass_on(self._session.post(url, json=body | self._extra))

    async def _pass_on(self, response: Any) -> web.StreamResponse:
        try:
            async with response as found:
                return web.Response(
                    body=await found.read(), status=found.status, content_type=found.content_type
                )
        except aiohttp.ClientError:
            return web.Response(status=502)  # as proxies say when the server behind them is gone
