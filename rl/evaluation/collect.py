"""Asks engines for the responses that are missing, of one evaluation or of several at once.

Each response is asked for by itself, so that it is kept as soon as it is scored: the same command continues where it
stopped. Engines read a question's prompt once and share its keys and values (prefix cache).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from data_pipeline.errors import BadSample
from megatron_omr.faults.run_lock import hold_folder
from megatron_omr.train.run_folder import save_config
from rl.config import EvalConfig
from rl.evaluation.answers import OF_READING, SUMMARY, AnswerLog
from rl.evaluation.ask import start_engines
from rl.evaluation.summary import Records
from rl.groups import build_records
from rl.prompts.stream import Question
from rl.rewards.scorer import Scorer
from rl.rollout.calls import Request
from rl.types import AskedResponse, Group, Prompt

Score = Callable[[str, str], float]
"""Of a response and a reference."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The questions of an evaluation, and the log of their responses."""

    config: EvalConfig
    questions: Sequence[Question]
    answers: AnswerLog
    score: Score | None = None  # decides how right a response is, in the place of checker and judge

    def list_missing(self) -> list[tuple[Prompt, int]]:
        """Returns the responses that the log lacks, by question and number."""
        return [
            (prompt, number)
            for prompt, _ in self.questions
            for number in range(self.config.sampling.n)
            if not self.answers.has(prompt, number)
        ]

    def list_bad(self) -> list[tuple[Prompt, BadSample]]:
        """Returns the questions that cannot be asked; not those with all their responses that cannot be read now.

        Raises:
            ValueError: of a question that cannot be read some responses are there, and some are missing.
        """
        bad = [(prompt, fault) for prompt, fault in self.questions if fault]
        away = {p.ref.id: self.answers.count(p) for p, fault in bad if fault.reason in OF_READING}
        kept = {name: count for name, count in away.items() if count}
        if begun := [name for name, count in kept.items() if count < self.config.sampling.n]:
            raise ValueError(
                f"{self.config.shards}: {len(begun):,} questions cannot be read now of which some responses are there "
                f"and some are missing, such as {begun[0]}; nothing was lost: run it again when the shards can be read"
            )
        return [(prompt, fault) for prompt, fault in bad if prompt.ref.id not in kept]

    def sort(self) -> list[Records]:
        """Returns the records of each question, and writes them in this order."""
        return self.answers.sort([prompt for prompt, _ in self.questions])

    def add(self, group: Group, number: int) -> None:
        """Keeps the response of this number."""
        self.answers.add(*(self._rescore(replace(each, rollout=number)) for each in build_records(group)))

    def request(self, prompt: Prompt, number: int) -> Request:
        own = replace(prompt, shards=self.config.shards)
        return Request(prompt=own, sampling=replace(self.config.sampling, n=1), seed=number)

    def _rescore(self, record: AskedResponse) -> AskedResponse:
        if self.score is None or record.response is None:
            return record
        return replace(record, accuracy=self.score(record.response, record.answer))


def hold_out(out: str) -> AbstractContextManager[None]:
    """Holds the folder, as hold_folder(): another evaluation would replace the files that this one writes."""
    return hold_folder(Path(out), held=f"another omr eval is writing {out}:", option="--out")


def collect_answers(engines: EvalConfig, evaluations: Sequence[Asked], scorer: Scorer) -> None:
    """Asks for what the evaluations lack, in one queue; `engines` says which are started. Writes their config.json.

    Raises:
        ValueError: a log holds responses that are not asked for now, or cannot be completed, as in Asked.list_bad;
            then nothing was written.
    """
    for each in evaluations:
        each.answers.check_asked({prompt.ref.id for prompt, _ in each.questions}, each.config.sampling.n)
    all_bad = [each.list_bad() for each in evaluations]
    for each, bad in zip(evaluations, all_bad, strict=True):
        save_config(each.config, Path(each.config.out), resumes=False)
        each.answers.forget_passed(prompt for prompt, fault in each.questions if not fault)
        for prompt, fault in bad:
            each.answers.refuse(prompt, fault)
    missing = [(each, prompt, number) for each in evaluations for prompt, number in each.list_missing()]
    num_found = sum(len(each.answers) for each in evaluations)
    if num_found and missing:
        print(f"{num_found:,} records are there already, {len(missing):,} are missing", flush=True)
    if missing:
        for each in evaluations:
            if each.list_missing():  # a summary would describe fewer responses
                (Path(each.config.out) / SUMMARY).unlink(missing_ok=True)
        _ask(engines, missing, scorer)


def _ask(engines: EvalConfig, missing: Sequence[tuple[Asked, Prompt, int]], scorer: Scorer) -> None:
    """Asks for these responses; keeps them as they come, scored."""
    requests = [asked.request(prompt, number) for asked, prompt, number in missing]
    scored = deque[tuple[Asked, int, Future[Group]]]()

    def keep_first() -> None:
        asked, number, group = scored.popleft()
        asked.add(group.result(), number)

    with (
        start_engines(engines) as answer,
        tqdm(total=len(missing), desc="eval", unit="response", dynamic_ncols=True) as bar,
    ):
        for place, responses in answer(requests):
            asked, prompt, number = missing[place]
            if responses.fault:
                asked.answers.refuse(prompt, BadSample(responses.fault, responses.detail))
            else:
                limit, is_judged = asked.config.sampling.max_tokens, asked.score is None
                group = scorer.score(prompt, responses, max_tokens=limit, asks_judge=is_judged)
                scored.append((asked, number, group))
            while scored and scored[0][2].done():
                keep_first()
            bar.update()
        while scored:
            keep_first()
