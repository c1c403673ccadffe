"""Asks served teachers the questions of some shards, in as many runs as it takes.

One event loop goes through the shards, so that the servers stay busy between them. Each response is written as it
comes (response_log.py). A shard with all its responses is checked, judged where a judge is configured, and sorted.
The same command continues after a kill, and asks only for what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from data_pipeline.distill.checking import check_responses, judge_response
from data_pipeline.distill.config import AskConfig
from data_pipeline.distill.likelihood import mean_answer_logprob, mean_logprob
from data_pipeline.distill.response_log import Key, ResponseLog
from data_pipeline.distill.responses import (
    ResponseStats,
    ShardSummary,
    TeacherResponse,
    read_stats,
    responses_path,
)
from data_pipeline.distill.teacher import teacher_request
from data_pipeline.errors import BadSample, ErrorBudget
from data_pipeline.files import claim_folder, read_json, write_json
from data_pipeline.parts import run_parts
from data_pipeline.served.client import ChatClient, NoResponse
from data_pipeline.served.judge import Judge
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import ShardIndex
from data_pipeline.types import Sample, SampleRef
from data_pipeline.verify.pool import VerifyPool

MANIFEST = "asked.json"
DECISIVE = ("temperature", "top_p", "max_tokens", "seed", "system_prompt", "extra_body")
"""Fields of the teacher on which its responses depend, besides the model and the questions."""
CHUNK = 512  # responses in memory while a shard is checked

Questions = Mapping[int, frozenset[str]]
"""Ids of the questions to ask, by shard."""


def all_questions(index: ShardIndex, number: int) -> Collection[str]:
    """Returns the ids of the `number`-th shard."""
    return index.rows(number).ids


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One teacher, and the questions that it is asked."""

    config: AskConfig
    wanted: Callable[[ShardIndex, int], Collection[str]] = all_questions
    """Returns their ids in a shard; a module's function, or a functools.partial of one, because it is pickled."""


def ask_questions(config: AskConfig) -> dict[str, ResponseStats]:
    """Asks one teacher all questions; as ask_together."""
    return ask_together([Asked(config=config)])[0]


def ask_together(asked: Sequence[Asked]) -> list[dict[str, ResponseStats]]:
    """Asks each teacher its questions of the same shards, all at once, and checks the responses.

    One run goes through all shards. Several `work.workers` divide the shards, and each keeps
    `teacher.server.concurrency` requests of its own to each teacher in flight.

    Returns:
        For each teacher the counts by source.

    Raises:
        ValueError: a folder holds responses of other settings, a server is down or refuses every request, or more
            requests to a teacher failed than its `max_failures` allows.
    """
    index, work = ShardIndex.load(asked[0].config.shards), asked[0].config.work
    numbers = range(len(index.shards))
    runs = min(len(numbers), work.workers or len(numbers))
    run_parts(partial(ask_shards, asked), [numbers[first::runs] for first in range(runs)], work=work)
    return [_count_all(one.config, index) for one in asked]


def _count_all(config: AskConfig, index: ShardIndex) -> dict[str, ResponseStats]:
    """Returns the counts of all shards; raises ValueError if too many requests failed in them together."""
    stats, budget = read_stats(config.out, index), _budget(config)
    for found in stats.values():
        budget.seen += found.asked
        for reason, count in found.failed.items():
            budget.count(reason, found.first_failed[reason], count)
    budget.check(at_end=True)
    return stats


def ask_shards(asked: Sequence[Asked], numbers: Sequence[int]) -> None:
    """Asks the questions of these shards, as far as responses are missing; raises as ask_together."""
    index = ShardIndex.load(asked[0].config.shards)
    todo = [(one.config, missing) for one in asked if (missing := _find_missing(one, index, numbers))]
    if todo:
        try:
            asyncio.run(_ask_all(todo, index))
        except ExceptionGroup as group:  # of a task that failed, after which the others were cancelled
            raise _first(group) from None


def _find_missing(one: Asked, index: ShardIndex, numbers: Sequence[int]) -> Questions:
    """Returns the shards with something to ask or to check. Where all are without a question, they are finished."""
    config, manifest = one.config, Path(one.config.out) / MANIFEST
    if manifest.exists():
        _claim(config, index, config.teacher.server.model or read_json(manifest)["model"])
    wanted = {number: frozenset(one.wanted(index, number)) for number in numbers}
    missing = {number: ids for number, ids in wanted.items() if not _is_complete(config, index, number, ids)}
    if any(ids or _is_begun(config, number) for number, ids in missing.items()):
        return missing
    for number in missing:  # no server need be there
        log, ids = ResponseLog(responses_path(config.out, number)), index.rows(number).ids
        asked = {"k": config.teacher.k, "questions": digest_questions(frozenset(), ids)}
        log.finish((), sha256=index.shards[number].sha256, checker=config.teacher.checked_by, **asked)
    return {}


def _is_begun(config: AskConfig, number: int) -> bool:
    path = responses_path(config.out, number)
    return any(file.exists() and file.stat().st_size > 0 for file in (path, path.with_suffix(".log")))


def _first(error: Exception) -> Exception:
    """Returns the first of grouped errors."""
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error


async def _ask_all(todo: Sequence[tuple[AskConfig, Questions]], index: ShardIndex) -> None:
    async with asyncio.TaskGroup() as tasks:
        for config, questions in todo:
            tasks.create_task(_ask(config, index, questions))


async def _ask(config: AskConfig, index: ShardIndex, questions: Questions) -> None:
    teacher = config.teacher
    total = teacher.k * sum(map(len, questions.values()))
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(ChatClient(teacher.server))
        judge = await stack.enter_async_context(Judge(teacher.judge)) if teacher.judge.server else None
        _claim(config, index, client.model)
        write_json(Path(config.out) / "config.json", asdict(config), shared=True)
        pool = stack.enter_context(VerifyPool(teacher.checker))
        name = f"ask {teacher.name}".strip()
        bar = tqdm(total=total, desc=name, unit=" responses", disable=None, dynamic_ncols=True)
        run = _Run(config, index, client, judge, pool, stack.enter_context(bar), _budget(config))
        await run.ask(questions)


def _claim(config: AskConfig, index: ShardIndex, model: str) -> None:
    """Makes `config.out` the folder of this model's responses to these questions, or finds that it is."""
    folder, teacher = Path(config.out), config.teacher
    wanted = {"shards": index.digest, "model": model, **{f: getattr(teacher, f) for f in DECISIVE}}
    manifest = folder / MANIFEST
    had_logprobs = manifest.exists() and read_json(manifest).get("logprobs")
    wanted["logprobs"] = (
        teacher.logprobs or had_logprobs
    ) or None  # responses without them cannot be ranked later
    numbers = range(len(index.shards))
    is_idle = {path.name for path in folder.glob("*")} == {"responses"} and not any(
        _is_begun(config, number) for number in numbers
    )  # of a teacher that had no question until now
    claim_folder(folder, MANIFEST, wanted, adopt=is_idle, shared=True)


def digest_questions(wanted: Collection[str], ids: Sequence[str]) -> str:
    """Names the questions of a shard that are asked; "" where they are all of `ids`."""
    if len(wanted) == len(ids):
        return ""
    digest = hashlib.sha256("\n".join(id for id in ids if id in wanted).encode())
    return digest.hexdigest()[:16]


def _is_complete(config: AskConfig, index: ShardIndex, number: int, wanted: Collection[str]) -> bool:
    summary, teacher = ShardSummary.load(config.out, index, number), config.teacher
    if summary is None or summary.k < teacher.k or summary.checker != teacher.checked_by:
        return False
    if summary.questions != digest_questions(wanted, index.rows(number).ids):
        return False
    return not (teacher.ask_failed_again and summary.failed)


def _budget(config: AskConfig) -> ErrorBudget:
    return ErrorBudget(
        limit=config.teacher.max_failures,
        option="teacher.max_failures",
        fix="fix what they name and continue with its ask_failed_again, or raise the limit",
        records=f"requests to {name}" if (name := config.teacher.name) else "requests",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shard:
    """A shard whose questions are being asked."""

    sha256: str
    refs: dict[str, SampleRef]  # of all questions
    questions: str  # digest of those that are asked
    log: ResponseLog
    missing: set[Key]


_Job = tuple[_Shard, Sample, int]
"""One response to ask for: its shard, the question and the rollout."""


@dataclass(eq=False)
class _Run:
    """Tasks take jobs from one iterator; the one that records a shard's last response starts its check."""

    config: AskConfig
    index: ShardIndex
    client: ChatClient
    judge: Judge | None
    pool: VerifyPool
    bar: tqdm
    budget: ErrorBudget
    logs: set[ResponseLog] = field(default_factory=set)  # open ones
    tasks: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    tokens: int = 0
    kept: int = 0

    async def ask(self, questions: Questions) -> None:
        """Asks for all missing responses to these questions, and checks their shards."""
        try:
            async with self.tasks:
                jobs = self._jobs(questions)
                for _ in range(self.config.teacher.server.concurrency):
                    self.tasks.create_task(self._work(jobs))
        finally:
            for log in self.logs:
                log.close()

    def _jobs(self, questions: Questions) -> Iterator[_Job]:
        """Yields a job for each missing response, shard by shard."""
        for number, wanted in questions.items():
            shard = self._open(number, wanted)
            if not shard.missing:
                self.tasks.create_task(self._finish(shard))
            for id in shard.refs:
                if rollouts := [n for n in range(self.config.teacher.k) if (id, n) in shard.missing]:
                    yield from self._question_jobs(shard, id, rollouts)

    def _question_jobs(self, shard: _Shard, id: str, rollouts: Sequence[int]) -> Iterator[_Job]:
        """Yields the jobs of one question, which is read when its turn comes."""
        try:
            sample = read_sample(self.index.folder, shard.refs[id])
        except BadSample as error:
            for rollout in rollouts:
                self._record(shard, _failed(id, rollout, "?", error))
        else:
            yield from ((shard, sample, rollout) for rollout in rollouts)

    def _open(self, number: int, wanted: Collection[str]) -> _Shard:
        row, rows, teacher = self.index.shards[number], self.index.rows(number), self.config.teacher
        refs = {id: rows.ref(row, place) for place, id in enumerate(rows.ids)}
        if len(refs) < row.count:
            twice = next(id for id, count in Counter(rows.ids).items() if count > 1)
            raise ValueError(
                f"{row.file} holds several samples with the id {twice!r}, whose responses could not be told apart; "
                f"`omr data validate {self.index.folder}` lists them: give each an id of its own"
            )
        log = ResponseLog(responses_path(self.config.out, number))
        self.logs.add(log)
        again = log.failed if teacher.ask_failed_again else set()
        keys = {(id, rollout) for id in wanted for rollout in range(teacher.k)}
        missing = {key for key in keys if key not in log or key in again}
        self.bar.update(len(keys) - len(missing))
        questions = digest_questions(wanted, rows.ids)
        return _Shard(sha256=row.sha256, refs=refs, questions=questions, log=log, missing=missing)

    async def _work(self, jobs: Iterator[_Job]) -> None:
        for shard, sample, rollout in jobs:
            try:
                response = await self._request(sample, rollout)
            except (BadSample, NoResponse) as error:
                response = _failed(sample.id, rollout, sample.source, error)
            self._record(shard, response)

    async def _request(self, sample: Sample, rollout: int) -> TeacherResponse:
        body, key = teacher_request(sample, rollout, self.config.teacher)
        reply = await self.client.ask(body, key)
        return TeacherResponse(
            id=sample.id,
            rollout=rollout,
            source=sample.source,
            kind=str(sample.metadata.get("kind", "")),
            answer=sample.answer,
            teacher=self.config.teacher.name or self.client.model,
            response=reply.text,
            finish_reason=reply.finish_reason,
            prompt_len=reply.prompt_len,
            response_len=reply.response_len,
            seconds=round(reply.seconds, 3),
            attempts=reply.attempts,
            answer_logprob=mean_answer_logprob(reply.tokens),
            mean_logprob=mean_logprob(reply.tokens),
        )

    def _record(self, shard: _Shard, response: TeacherResponse) -> None:
        """Writes a response down and counts it; the last one of a shard starts the shard's check.

        Raises:
            ValueError: too many failed.
        """
        shard.log.add(response)
        shard.missing.remove(response.key)
        self.tokens += response.response_len
        self.bar.set_postfix(tokens=self.tokens, kept=self.kept, refresh=False)
        self.bar.update()
        self.budget.seen += 1
        if response.is_failed:
            self.budget.count(response.reason, f"{response.id!r}: {response.detail}")
        self.budget.check()
        if not shard.missing:
            self.tasks.create_task(self._finish(shard))

    async def _finish(self, shard: _Shard) -> None:
        """Checks the responses that the configured checker has not checked yet, and sorts them into their file."""
        log, checker, k = shard.log, self.config.teacher.checked_by, self.config.teacher.k
        keys = log.keys(shard.refs)
        for start in range(0, len(keys), CHUNK):
            chunk = [log.read(key) for key in keys[start : start + CHUNK]]
            unchecked = [found for found in chunk if not found.is_failed and found.checker != checker]
            checked = await asyncio.to_thread(check_responses, self.pool, unchecked, checker)
            await asyncio.gather(*(self._log_checked(shard, response) for response in checked))
        groups = (list(group) for _, group in groupby(map(log.read, keys), lambda response: response.id))
        asked = {"k": k, "questions": shard.questions}
        summary = await asyncio.to_thread(log.finish, groups, sha256=shard.sha256, checker=checker, **asked)
        self.logs.remove(log)
        self.kept += sum(found.kept for found in summary.stats.values())

    async def _log_checked(self, shard: _Shard, response: TeacherResponse) -> None:
        """Logs a response as soon as it is judged, because judgements are paid for as well."""
        if self.judge and not response.accuracy and response.extracted:
            sample = read_sample(self.index.folder, shard.refs[response.id])
            response = await judge_response(self.judge, sample, response)
        shard.log.add(response)


def _failed(id: str, rollout: int, source: str, error: BadSample | NoResponse) -> TeacherResponse:
    detail = str(error)[:1_000]
    return TeacherResponse(id=id, rollout=rollout, source=source, reason=error.reason, detail=detail)
