"""Asks a served model about all samples of some shards, in as many runs as it takes.

One event loop goes through the shards, so the server stays busy from one into the next. Each answer is written as
it comes (answers.py); a shard whose last answer is in is checked, judged where that is asked, and put in order. A
run that was killed continues, and asks for nothing that it has.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data_pipeline.distill.answers import Answer, AnswerLog, ShardSummary, Yield, answers_path
from data_pipeline.distill.checking import check_answers, judge_answer
from data_pipeline.distill.config import AskConfig
from data_pipeline.errors import BadSample
from data_pipeline.files import write_json
from data_pipeline.parts import run_parts
from data_pipeline.served.client import ChatClient, NoAnswer
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import ShardIndex
from data_pipeline.types import Sample, SampleRef
from data_pipeline.verify.pool import VerifyPool

C = TypeVar("C", bound=AskConfig)

MANIFEST = "asked.json"
MIN_ANSWERS = 100
"""Before this many answers a share of failures says little."""
CHUNK = 512  # answers in memory while a shard is checked

Ask = Callable[[ChatClient, Sample, int], Awaitable[Answer]]
"""Asks about a sample for the n-th time. Raises BadSample or NoAnswer where nothing comes of it."""


def ask_all(work: Callable[[C, Sequence[int]], object], config: C) -> dict[str, Yield]:
    """`work` on all shards, distill_shards for one; returns what came of it by source.

    One run goes through all shards and keeps the server busy from one into the next. Several `config.work.workers`
    share the shards out among them, each with `config.teacher.server.concurrency` requests of its own.
    """
    index = ShardIndex.load(config.shards)
    numbers = range(len(index.shards))
    runs = min(len(numbers), config.work.workers or len(numbers))
    chunks = [numbers[first::runs] for first in range(runs)]
    run_parts(partial(work, config), chunks, work=config.work)
    return read_yields(config.out, index, numbers)


def ask_shards(config: AskConfig, numbers: Sequence[int], ask: Ask, *, kind: str) -> dict[str, Yield]:
    """Ask about each sample of these shards `config.teacher.k` times; returns what came of it by source.

    Raises:
        ValueError: the folder holds answers to something else, the server is down or refuses everybody, or
            more fails than `max_bad_samples` allows.
    """
    index = ShardIndex.load(config.shards)
    asked = _what_decides(config, index, kind)
    _compare(config.out, asked)
    todo = [number for number in numbers if not _is_done(config, index, number)]
    if todo:
        try:
            asyncio.run(_ask_all(config, index, todo, ask, asked))
        except ExceptionGroup as group:  # one of many tasks failed, and the others were ended
            raise _first(group) from None
    return read_yields(config.out, index, numbers)


def read_yields(out: str | Path, index: ShardIndex, numbers: Sequence[int]) -> dict[str, Yield]:
    """What came of asking, by source, of those shards among these that were asked to their end."""
    total: dict[str, Yield] = {}
    for number in numbers:
        summary = ShardSummary.load(out, index, number)
        for source, found in summary.yields.items() if summary else ():
            total.setdefault(source, Yield()).merge(found)
    return total


async def _ask_all(
    config: AskConfig, index: ShardIndex, todo: Sequence[int], ask: Ask, asked: dict[str, object]
) -> None:
    total = config.teacher.k * sum(index.shards[number].count for number in todo)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(ChatClient(config.teacher.server))
        judge = config.teacher.judge.server and await stack.enter_async_context(
            ChatClient(config.teacher.judge.server)
        )
        asked = asked | {"model": client.model}
        _compare(config.out, asked)
        write_json(Path(config.out) / MANIFEST, {"asked": asked, "config": asdict(config)}, shared=True)
        pool = stack.enter_context(VerifyPool(config.teacher.checker))
        bar = tqdm(total=total, desc="ask", unit=" answers", disable=None, dynamic_ncols=True)
        run = _Run(config, index, pool=pool, judge=judge, bar=stack.enter_context(bar))
        stack.callback(run.close)
        async with asyncio.TaskGroup() as tasks:
            jobs = run.jobs(todo, tasks)
            for _ in range(config.teacher.server.concurrency):
                tasks.create_task(run.work(jobs, tasks, client, ask))


def _is_done(config: AskConfig, index: ShardIndex, number: int) -> bool:
    summary = ShardSummary.load(config.out, index, number)
    if summary is None or summary.k < config.teacher.k or summary.checker != config.teacher.checked_by:
        return False
    return not (config.teacher.ask_failed_again and summary.failed)


def _what_decides(config: AskConfig, index: ShardIndex, kind: str) -> dict[str, object]:
    """What decides the answers, as far as it is known before the server is asked which model it serves."""
    decisive = ("temperature", "top_p", "max_tokens", "seed", "system_prompt", "extra_body")
    known = ("model", *decisive) if config.teacher.server.model else decisive
    return {"kind": kind, "shards": index.digest, **{name: getattr(config.teacher, name) for name in known}}


def _compare(out: str, asked: dict[str, object]) -> None:
    """One folder holds answers to one thing."""
    path = Path(out) / MANIFEST
    if not path.exists():
        return
    before = json.loads(path.read_text())["asked"]
    if changed := [f"{name} was {before.get(name)!r}" for name in asked if asked[name] != before.get(name)]:
        raise ValueError(
            f"{out} holds answers to something else: {'; '.join(changed)}; ask as then, or choose another folder"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shard:
    """A shard that is being asked about."""

    sha256: str
    refs: dict[str, SampleRef]
    log: AnswerLog
    missing: set[tuple[str, int]]  # (id, rollout) of the answers it lacks


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One answer to ask for."""

    shard: _Shard
    id: str
    rollout: int
    sample: Sample | BadSample


class _Run:
    """Workers take jobs from one stream; who brings a shard's last answer starts its check."""

    def __init__(
        self, config: AskConfig, index: ShardIndex, *, pool: VerifyPool, judge: ChatClient | None, bar: tqdm
    ) -> None:
        self._config, self._index = config, index
        self._pool, self._judge, self._bar = pool, judge, bar
        self._logs: set[AnswerLog] = set()  # of the shards that are open
        self._answers, self._tokens, self._kept = 0, 0, 0
        self._failures: Counter[str] = Counter()  # by reason
        self._cases: dict[str, str] = {}  # the first of each

    def jobs(self, numbers: Sequence[int], tasks: asyncio.TaskGroup) -> Iterator[_Job]:
        """The missing answers, shard by shard; a sample is read when its turn comes."""
        for number in numbers:
            shard = self._open(number)
            if not shard.missing:
                tasks.create_task(self._finish(shard))
            asked = {
                id: [n for n in range(self._config.teacher.k) if (id, n) in shard.missing]
                for id in shard.refs
            }
            for id, rollouts in asked.items():
                sample = self._read(shard.refs[id]) if rollouts else None
                for rollout in rollouts:
                    assert sample
                    yield _Job(shard=shard, id=id, rollout=rollout, sample=sample)

    async def work(
        self, jobs: Iterator[_Job], tasks: asyncio.TaskGroup, client: ChatClient, ask: Ask
    ) -> None:
        for job in jobs:
            answer = await _answer(job, client, ask)
            job.shard.log.add(answer)
            job.shard.missing.remove(answer.key)
            self._count(answer)
            if not job.shard.missing:
                tasks.create_task(self._finish(job.shard))

    def close(self) -> None:
        for log in self._logs:
            log.close()

    def _open(self, number: int) -> _Shard:
        row, rows, k = self._index.shards[number], self._index.rows(number), self._config.teacher.k
        refs = {id: rows.ref(row, place) for place, id in enumerate(rows.ids)}
        if len(refs) < row.count:
            twice = next(id for id, count in Counter(rows.ids).items() if count > 1)
            raise ValueError(
                f"{row.file} holds several samples with the id {twice!r}, whose answers could not be told apart; "
                f"`omr data validate {self._index.folder}` lists them: give each an id of its own"
            )
        log = AnswerLog(answers_path(self._config.out, number))
        self._logs.add(log)
        again = log.failed if self._config.teacher.ask_failed_again else set()
        keys = {(id, rollout) for id in refs for rollout in range(k)}
        missing = {key for key in keys if key not in log or key in again}
        self._bar.update(row.count * k - len(missing))
        return _Shard(sha256=row.sha256, refs=refs, log=log, missing=missing)

    def _read(self, ref: SampleRef) -> Sample | BadSample:
        try:
            return read_sample(self._index.folder, ref)
        except BadSample as error:
            return error

    def _count(self, answer: Answer) -> None:
        """Show it; stop where too much fails."""
        self._answers += 1
        self._tokens += answer.tokens_out
        self._bar.set_postfix(tokens=self._tokens, kept=self._kept, refresh=False)
        self._bar.update()
        if answer.is_failed:
            self._failures[answer.reason] += 1
            self._cases.setdefault(answer.reason, f"{answer.id!r}: {answer.detail}")
        failed, most = self._failures.total(), self._config.teacher.max_failures
        if failed > (most * max(self._answers, MIN_ANSWERS) if most < 1 else most):
            cases = [
                f"  {count} {why}, the first {self._cases[why]}" for why, count in self._failures.items()
            ]
            raise ValueError(
                f"{failed} of {self._answers} answers failed, more than max_bad_samples={most:g} allows:\n"
                + "\n".join(cases)
                + "\nmend what they name and continue with --ask_failed_again, or raise the limit"
            )

    async def _finish(self, shard: _Shard) -> None:
        """Check what is not checked yet, and put the shard in order."""
        log, checker = shard.log, self._config.teacher.checked_by
        keys = log.keys(shard.refs)
        for start in range(0, len(keys), CHUNK):
            answers = [log.read(key) for key in keys[start : start + CHUNK]]
            todo = [answer for answer in answers if answer.response is not None and answer.checker != checker]
            checked = await asyncio.to_thread(check_answers, self._pool, todo, checker)
            if self._judge:
                await asyncio.gather(*(self._have_judged(shard, answer) for answer in checked))
                continue
            for answer in checked:
                log.add(answer)
        in_order = (list(group) for _, group in groupby(map(log.read, keys), lambda answer: answer.id))
        summary = await asyncio.to_thread(
            log.finish, in_order, sha256=shard.sha256, k=self._config.teacher.k, checker=checker
        )
        self._logs.remove(log)
        self._kept += sum(found.kept for found in summary.yields.values())

    async def _have_judged(self, shard: _Shard, answer: Answer) -> None:
        """Log the answer once the judge, who costs as well, has spoken."""
        assert self._judge
        if not answer.accuracy and answer.extracted:
            sample = read_sample(self._index.folder, shard.refs[answer.id])
            answer = await judge_answer(self._judge, sample, answer)
        shard.log.add(answer)


async def _answer(job: _Job, client: ChatClient, ask: Ask) -> Answer:
    try:
        if isinstance(job.sample, BadSample):
            raise job.sample
        return await ask(client, job.sample, job.rollout)
    except (BadSample, NoAnswer) as error:
        source = job.sample.source if isinstance(job.sample, Sample) else "?"
        detail = str(error)[:1_000]
        return Answer(id=job.id, rollout=job.rollout, source=source, reason=error.reason, detail=detail)


def _first(group: BaseExceptionGroup) -> BaseException:
    """The first error in nested groups of them."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
