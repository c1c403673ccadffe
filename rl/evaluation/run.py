"""Scores a Hugging Face folder on held-out questions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from data_pipeline.errors import BadSample
from data_pipeline.files import write_json
from data_pipeline.shards.index import load_samples
from megatron_omr.train.run_folder import save_config
from rl.config import EvalConfig
from rl.evaluation.baseline import score_baseline
from rl.evaluation.summary import EvalSummary, summarize
from rl.groups import build_records
from rl.prompts.stream import Question, load_prompt_limits, read_prompts
from rl.rewards.registry import load_functions
from rl.rewards.scorer import Scorer
from rl.rollout.calls import Request
from rl.rollout.engine import Engine
from rl.types import Group, Prompt, Responses, Rollout

log = logging.getLogger(__name__)

_Asked = tuple[Prompt, tuple[Rollout, ...], BadSample | None]


def evaluate(config: EvalConfig) -> EvalSummary:
    """Asks the questions; writes `out`/responses.jsonl while it runs and `out`/summary.json at the end.

    A question that cannot be asked is named and counts as wrong.

    Raises:
        ValueError: `shards` holds no questions, or none that can be asked; a folder of `train_shards` has no shards.
    """
    load_functions(config.reward)  # a mistake in a user's own is found at once
    questions = read_prompts(config.shards, load_prompt_limits(config), config.limit)
    check_any(config.shards, questions)
    for train_shards in config.train_shards:
        load_samples(train_shards)  # names a wrong folder before any question is asked
    out = Path(config.out)
    (out / "summary.json").unlink(missing_ok=True)  # an old one would describe other responses
    save_config(config, out, resumes=False)
    groups = []
    with (
        Scorer(config.reward, out) as scorer,
        closing(Engine(config)) as engine,
        # written in place, so that it can be followed; summary.json says that it is complete
        (out / "responses.jsonl").open("wb") as lines,
        tqdm(total=len(questions), desc="eval", unit="question", dynamic_ncols=True) as bar,
    ):
        asked = list[_Asked]()  # and being scored, while the next are generated
        for chunk in chain(_ask(engine, scorer, config, questions), [[]]):
            before, asked = asked, chunk
            for group in _collect(scorer, before):
                lines.writelines(record.to_json() for record in build_records(group))
                groups.append(group)
            lines.flush()
            bar.update(len(before))
        baseline = score_baseline(config, scorer.pool, groups)
        summary = replace(summarize(groups, seed=config.seed), baseline=baseline)
    write_json(out / "summary.json", asdict(summary))
    if bad := summary.bad_questions:
        reasons = ", ".join(f"{reason} {count}" for reason, count in bad.items())
        log.warning(
            f"{sum(bad.values())} of {summary.count} questions could not be asked and count as wrong: {reasons}"
        )
    return summary


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
    engine: Engine, scorer: Scorer, config: EvalConfig, questions: Sequence[Question]
) -> Iterator[list[_Asked]]:
    """Yields the questions in order, as many together as the engine answers at once; their responses are being scored.

    The engine goes on to later questions while it finishes those of a list. What cannot be asked has no responses.
    """
    prompts = [prompt for prompt, fault in questions if not fault]
    replies = engine.answer(Request(prompt=prompt, sampling=config.sampling, seed=0) for prompt in prompts)
    found = dict[Prompt, Responses]()
    size = max(1, config.engine.max_num_seqs // config.sampling.n)
    for start in range(0, len(questions), size):
        chunk = questions[start : start + size]
        while any(not fault and prompt not in found for prompt, fault in chunk):
            number, responses = next(replies)
            found[prompts[number]] = responses
            scorer.add(prompts[number], responses, max_tokens=config.sampling.max_tokens)
        yield [_describe(prompt, fault, found.pop(prompt, Responses())) for prompt, fault in chunk]


def _describe(prompt: Prompt, fault: BadSample | None, responses: Responses) -> _Asked:
    if responses.fault:
        fault = BadSample(responses.fault, responses.detail)
    if fault:
        log.warning(f"question {prompt.ref.id} cannot be asked and counts as wrong: {fault}")
    return prompt, responses.rollouts, fault


def _collect(scorer: Scorer, asked: Sequence[_Asked]) -> list[Group]:
    groups = scorer.collect([(prompt, rollouts) for prompt, rollouts, _ in asked])
    return [replace(group, fault=fault) for group, (_, _, fault) in zip(groups, asked, strict=True)]
