"""Asks a judge from code without an event loop: a thread runs the loop, so that nobody waits for the server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from data_pipeline.served.config import JudgeConfig
from data_pipeline.served.judge import MAX_CANDIDATE_LEN, Judge, Judgement
from data_pipeline.verify.check import Verdict

T = TypeVar("T")


class JudgeThread:
    """A judge whose requests run in a thread of their own. Close it."""

    def __init__(self, config: JudgeConfig, verdicts: Path) -> None:
        """Reads the verdicts that the file holds, and waits for the server.

        Raises:
            ValueError: the server does not answer, or not as it should; the file is damaged.
        """
        self._judge = Judge(config, verdicts=verdicts)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        try:
            self._call(self._judge.__aenter__()).result()
        except BaseException:
            self._stop()
            raise
        print(
            f"judge: {self._judge.model} at {config.base_url}, {self._judge.num_cached} verdicts in {verdicts}",
            flush=True,
        )

    def ask(self, triples: Sequence[tuple[str, str, str]]) -> Future[list[Judgement]]:
        """Returns at once; the future gets what the judge says of each (question, answer, candidate)."""
        return self._call(self._ask(triples))

    def close(self) -> None:
        """Ends the thread; requests in flight are dropped."""
        if not self._loop.is_closed():
            self._call(self._judge.__aexit__()).result()
            self._stop()

    async def _ask(self, triples: Sequence[tuple[str, str, str]]) -> list[Judgement]:
        return await asyncio.gather(*(self._judge.ask(*triple) for triple in triples))

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _stop(self) -> None:
        self._call(_end_others()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_others() -> None:
    """Cancels all other tasks of the loop, and ends the threads in which it looks addresses up."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


def needs_judge(verdict: Verdict) -> bool:
    """Returns True where the rules found an answer, and found it wrong: of nothing else is the judge asked."""
    is_wrong = not verdict.accuracy and verdict.decided_by in ("none", "timeout", "error")
    return is_wrong and 0 < len(verdict.extracted) <= MAX_CANDIDATE_LEN


def with_judgement(verdict: Verdict, said: Judgement | None) -> Verdict:
    """Returns the verdict after the judge: right by judge, as it was, or wrong by judge_failed; None asked nothing."""
    if said is None or said.is_equal is False:
        return verdict
    if said.is_equal:
        return replace(verdict, accuracy=1.0, decided_by="judge")
    return replace(verdict, decided_by="judge_failed")
