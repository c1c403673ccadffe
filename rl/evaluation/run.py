"""Scores a Hugging Face folder on held-out questions, as one page.

Each response is asked for by itself, so that it is kept as soon as it is scored: the same command continues where it
stopped. Engines read a question's prompt once and share its keys and values (prefix cache).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from data_pipeline.errors import BadSample
from data_pipeline.files import write_json
from data_pipeline.shards.index import load_samples
from megatron_omr.train.run_folder import save_config
from rl.config import EvalConfig
from rl.evaluation.answers import RESPONSES, AnswerLog, choose_questions, claim_answers
from rl.evaluation.ask import start_engines
from rl.evaluation.baseline import score_baseline
from rl.evaluation.summary import EvalSummary, Records, mean_accuracy, summarize
from rl.groups import build_records
from rl.prompts.stream import Question, load_prompt_limits, read_prompts
from rl.rewards.registry import load_functions
from rl.rewards.scorer import Scorer
from rl.rollout.calls import Request
from rl.types import Group, Prompt

log = logging.getLogger(__name__)

SUMMARY = "summary.json"


def evaluate(config: EvalConfig) -> EvalSummary:
    """Asks the questions; writes `out`/responses.jsonl while it runs and `out`/summary.json at the end.

    A question that cannot be asked is named and counts as wrong. Responses that are in the folder are kept.

    Raises:
        ValueError: `shards` holds no questions, or none that can be asked; a folder of `train_shards` has no shards;
            `out` has responses of another model, to other questions, or with other settings.
    """
    load_functions(config.reward)  # a mistake in a user's own is found at once
    questions = read_prompts(config.shards, load_prompt_limits(config), config.limit)
    questions = choose_questions(questions, config.subset, config.seed)
    check_any(config.shards, questions)
    for train_shards in config.train_shards:
        load_samples(train_shards)  # names a wrong folder before any question is asked
    out = Path(config.out)
    claim_answers(config)
    save_config(config, out, resumes=False)
    with Scorer(config.reward, out) as scorer:
        records = collect_answers(config, questions, scorer)
        accuracies = [mean_accuracy(each) for each in records]
        prompts = [prompt for prompt, _ in questions]
        baseline = score_baseline(config, scorer.pool, prompts, accuracies)
    summary = replace(summarize(records, seed=config.seed), baseline=baseline)
    write_json(out / SUMMARY, asdict(summary))
    if bad := summary.bad_questions:
        reasons = ", ".join(f"{reason} {count}" for reason, count in bad.items())
        log.warning(
            f"{sum(bad.values())} of {summary.count} questions could not be asked and count as wrong: {reasons}"
        )
    return summary


def collect_answers(config: EvalConfig, questions: Sequence[Question], scorer: Scorer) -> list[Records]:
    """Returns the records of each question; asks for those that `config.out` lacks."""
    n = config.sampling.n
    with AnswerLog(Path(config.out) / RESPONSES) as answers:
        answers.check_asked({prompt.ref.id for prompt, _ in questions}, n)
        for prompt, fault in questions:
            if fault:
                answers.refuse(prompt, fault)
        missing = [
            (prompt, number)
            for prompt, _ in questions
            for number in range(n)
            if not answers.has(prompt, number)
        ]
        if len(answers) and missing:
            print(f"{len(answers):,} records are there already, {len(missing):,} are missing", flush=True)
        if missing:
            (Path(config.out) / SUMMARY).unlink(missing_ok=True)  # it would describe fewer responses
            _ask(config, missing, scorer, answers)
    return answers.sort([prompt for prompt, _ in questions])


def check_any(shards: str, questions: Sequence[Question]) -> None:
    """Raises ValueError unless a question can be asked."""
    if not questions:
        raise ValueError(f"shards={shards} holds no questions; write shards there with `omr data`")
    if all(fault for _, fault in questions):
        prompt, fault = questions[0]
        raise ValueError(
            f"none of the {len(questions)} questions of shards={shards} can be asked, the first, {prompt.ref.id}: "
            f"{fault}; `omr data validate` with --model finds them"
        )


def _ask(
    config: EvalConfig, missing: Sequence[tuple[Prompt, int]], scorer: Scorer, answers: AnswerLog
) -> None:
    """Asks for these responses, each by its number; keeps them as they come, scored."""
    sampling = replace(config.sampling, n=1)
    requests = [Request(prompt=prompt, sampling=sampling, seed=number) for prompt, number in missing]
    scored = deque[tuple[int, Future[Group]]]()

    def keep_first() -> None:
        number, group = scored.popleft()
        answers.add(*(replace(record, rollout=number) for record in build_records(group.result())))

    with (
        start_engines(config) as answer,
        tqdm(total=len(missing), desc="eval", unit="response", dynamic_ncols=True) as bar,
    ):
        for place, responses in answer(requests):
            prompt, number = missing[place]
            if responses.fault:
                answers.refuse(prompt, BadSample(responses.fault, responses.detail))
            else:
                scored.append((number, scorer.score(prompt, responses, max_tokens=sampling.max_tokens)))
            while scored and scored[0][1].done():
                keep_first()
            bar.update()
        while scored:
            keep_first()
