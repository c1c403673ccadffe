"""Scores responses in the background, from when they arrive: the checker's rules, then the judge, then the functions.

A thread takes all responses that wait and has the checker's processes look at them; those that go to the judge wait in
its event loop meanwhile. Who generates never waits. Rewards depend on the response alone, not on when it came.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Protocol, TypeVar

from data_pipeline.errors import ErrorBudget
from data_pipeline.served.judge import Judgement
from data_pipeline.verify.check import Verdict, check_text
from data_pipeline.verify.pool import VerifyPool
from rl.rewards.compute import compute_reward
from rl.rewards.config import RewardConfig
from rl.rewards.inputs import RewardInput
from rl.rewards.judging import JudgeThread, needs_judge, with_judgement
from rl.rewards.own import save_own
from rl.rewards.registry import load_functions
from rl.types import Group, Prompt, Responses, Reward, Rollout

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds without a reward, while responses wait for theirs, after which the log says so, each time again."""

END_TIMEOUT = 10.0
"""Seconds that a scorer which is closed waits for the function that it is in."""


class _Sampling(Protocol):
    @property
    def max_tokens(self) -> int: ...


S = TypeVar("S", bound=_Sampling)
R = TypeVar("R")
OnReply = Callable[[Prompt, Responses], object]


@dataclass(eq=False)
class _Job:
    """The responses to one prompt while they are scored."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    max_tokens: int
    asks_judge: bool
    verdicts: list[Verdict] = field(default_factory=list)
    group: Future[Group] = field(default_factory=Future)


class Scorer:
    """Scores the responses of a run or an evaluation. Close it, or use it as a context manager.

    Raises, wherever responses are added or collected: ServerDown, where the judge is away for too long; ValueError,
    where functions failed more often than `config.max_errors` allows; RuntimeError, where the checker cannot work.
    """

    def __init__(self, config: RewardConfig, folder: Path) -> None:
        """Starts the checker's processes; `folder` gets judge.jsonl and copies of the user's functions.

        Raises:
            ValueError: a user's function does not work, or the judge does not answer.
        """
        print(config.describe(), flush=True)
        self._config, self._functions = config, load_functions(config)
        save_own(config, folder)
        self._judge = JudgeThread(config.judge, folder / "judge.jsonl") if config.use_judge else None
        self.pool = VerifyPool(config.checker)
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_closed = False
        # a daemon: a function that never returns must not keep a run that ends from ending
        self._thread = Thread(target=self._work, name="score", daemon=True)
        self._thread.start()
        self._jobs: dict[
            int, _Job
        ] = {}  # added and not collected yet, by id() of the rollouts that they hold
        self._waiting: deque[_Job] = deque()
        self._failure: BaseException | None = None
        self._budget = ErrorBudget(
            limit=config.max_errors,
            option="reward.max_errors",
            fix="fix the function, or raise the limit",
            records="rewards",
        )
        self._closes = Event()
        Thread(target=self._watch, name="watch rewards", daemon=True).start()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self, prompt: Prompt, responses: Responses, *, max_tokens: int, asks_judge: bool = True
    ) -> Future[Group]:
        """Begins to score the responses to a prompt; returns the group to come at once. A fault has no responses.

        Args:
            max_tokens: most tokens that a response could have.
            asks_judge: False where the rules alone decide, also with a judge.

        Raises:
            CancelledError: the scorer was closed, and would never score them.
        """
        if self._failure:
            raise self._failure
        job = _Job(prompt, responses.rollouts, max_tokens, asks_judge)
        if responses.rollouts:
            self._jobs[id(responses.rollouts)] = job
            self._waiting.append(job)
            self._calls.put(self._check_waiting)
            if self._is_closed:  # looked at last: close() drops what it finds
                self.drop()
                raise CancelledError("the scorer is closed")
        else:
            job.group.set_result(Group(prompt=prompt, rollouts=(), rewards=()))
        return job.group

    def score(
        self, prompt: Prompt, responses: Responses, *, max_tokens: int, asks_judge: bool = True
    ) -> Future[Group]:
        """Does what add() does, for a caller who takes the group from the future alone and does not collect() it."""
        scored = self.add(prompt, responses, max_tokens=max_tokens, asks_judge=asks_judge)
        scored.add_done_callback(lambda _: self._jobs.pop(id(responses.rollouts), None))
        return scored

    def scoring(self, generate: Callable[[Sequence[Prompt], S, int, OnReply], R]) -> Callable[..., R]:
        """Returns RolloutManager.generate with the scorer told of every reply, for a call without `on_reply`."""

        def generate_and_score(prompts: Sequence[Prompt], sampling: S, step_seed: int) -> R:
            return generate(prompts, sampling, step_seed, partial(self.add, max_tokens=sampling.max_tokens))

        return generate_and_score

    def collect(self, asked: Sequence[tuple[Prompt, tuple[Rollout, ...]]]) -> list[Group]:
        """Returns a group for each prompt, in order; waits until the rollouts, which were added before, are scored."""
        jobs = [self._jobs[id(rollouts)] if rollouts else None for _, rollouts in asked]
        for group in wait([job.group for job in jobs if job], return_when=FIRST_EXCEPTION).done:
            group.result()  # raises what went wrong
        for job in filter(None, jobs):
            del self._jobs[id(job.rollouts)]
        return [
            job.group.result() if job else Group(prompt=prompt, rollouts=(), rewards=())
            for job, (prompt, _) in zip(jobs, asked, strict=True)
        ]

    def drop(self) -> None:
        """Gives up what is being scored: whoever waits for it, in another thread, gets CancelledError."""
        for job in list(self._jobs.values()):
            if not job.group.done() and job.group.cancel():
                job.group.set_running_or_notify_cancel()  # wakes those who wait

    def close(self) -> None:
        """Ends threads and processes; what is being scored is dropped."""
        self._is_closed = True
        self._closes.set()
        self.drop()
        if self._judge:
            self._judge.close()
        self._calls.put(None)
        self._thread.join(END_TIMEOUT)
        if self._thread.is_alive():
            log.warning("a function of reward.weights has not returned; the run ends without it")
        self.pool.close()

    def _work(self) -> None:
        """Makes the calls that the queue holds, until it is closed; errors reach whoever waits, by _tell."""
        while call := self._calls.get():
            with suppress(BaseException):
                if not self._is_closed:
                    call()

    def _watch(self) -> None:
        """Says so where none of the responses that wait was scored for PATIENCE seconds: nobody else may look."""
        before = set[_Job]()
        while not self._closes.wait(PATIENCE):
            waiting = {job for job in list(self._jobs.values()) if not job.group.done()}
            if before and before <= waiting:
                log.warning(
                    f"the responses to {len(before)} prompts wait for the judge, or for a function of reward.weights: "
                    f"none was scored for {PATIENCE:g} s"
                )
            before = waiting

    def _check_waiting(self) -> None:
        """Checks all jobs that wait, maybe none: an earlier call took those of a later one, too."""
        jobs = [self._waiting.popleft() for _ in range(len(self._waiting))]
        with self._tell(jobs):
            verdicts = iter(self._check([(r.response, j.prompt.answer) for j in jobs for r in j.rollouts]))
            for job in jobs:
                job.verdicts = list(islice(verdicts, len(job.rollouts)))
                self._judge_or_finish(job)

    def _check(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        if self._config.correct_by == "accuracy":
            return self.pool.check_many(pairs)
        return [check_text(*pair, self._config.checker.mode) for pair in pairs]  # reads the answer, no more

    def _judge_or_finish(self, job: _Job) -> None:
        prompt, is_judged = job.prompt, bool(self._judge) and job.asks_judge
        asked = [i for i, verdict in enumerate(job.verdicts) if is_judged and needs_judge(verdict)]
        if not self._judge or not asked:
            self._finish(job, {})
            return
        triples = [(prompt.question, prompt.answer, job.verdicts[i].extracted) for i in asked]
        self._judge.ask(triples).add_done_callback(partial(self._take_judged, job, asked))

    def _take_judged(self, job: _Job, asked: Sequence[int], said: Future[list[Judgement]]) -> None:
        """Is called in the judge's thread; functions run in the scorer's alone."""
        if not said.cancelled():
            self._calls.put(partial(self._finish_judged, job, asked, said))

    def _finish_judged(self, job: _Job, asked: Sequence[int], said: Future[list[Judgement]]) -> None:
        with self._tell([job]):
            self._finish(job, dict(zip(asked, said.result(), strict=True)))

    def _finish(self, job: _Job, judged: Mapping[int, Judgement]) -> None:
        rewards = tuple(self._reward(job, i, judged.get(i)) for i in range(len(job.rollouts)))
        self._budget.seen += len(rewards)
        self._budget.check()
        job.group.set_result(Group(prompt=job.prompt, rollouts=job.rollouts, rewards=rewards))

    def _reward(self, job: _Job, number: int, said: Judgement | None) -> Reward:
        rollout, verdict = job.rollouts[number], job.verdicts[number]
        given = RewardInput(
            prompt=job.prompt,
            response=rollout.response,
            response_len=len(rollout.token_ids),
            finish_reason=rollout.finish_reason,
            verdict=with_judgement(verdict, said),
            max_tokens=job.max_tokens,
        )
        report = partial(self._count_error, f"{job.prompt.ref.id}, response {number}")
        reward = compute_reward(given, self._functions, self._config, report)
        if self._judge is None:
            return reward
        return replace(reward, judged="no" if said is None else "cached" if said.is_cached else "asked")

    def _count_error(self, place: str, name: str, error: str) -> None:
        if name not in self._budget.counts:
            log.warning(f"reward {name} failed on {place} and counts as 0, like all that follow: {error}")
        self._budget.count(name, f"{place}: {error}")

    @contextmanager
    def _tell(self, jobs: Sequence[_Job]) -> Iterator[None]:
        """Hands an error of the block to whoever waits for these jobs."""
        try:
            yield
        except BaseException as error:
            self._failure = error
            for job in jobs:
                if not job.group.done():
                    job.group.set_exception(error)
            raise
