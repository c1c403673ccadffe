"""Scores a Hugging Face folder on held-out questions, as one page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from data_pipeline.files import write_json
from data_pipeline.shards.index import load_samples
from rl.config import EvalConfig
from rl.evaluation.answers import RESPONSES, SUMMARY, AnswerLog, choose_questions, claim_answers
from rl.evaluation.baseline import Baseline, score_baseline
from rl.evaluation.collect import Asked, collect_answers, hold_out
from rl.evaluation.summary import EvalSummary, Records, mean_accuracy, summarize
from rl.prompts.stream import Question, load_prompt_limits, read_prompts
from rl.rewards.registry import load_functions
from rl.rewards.scorer import Scorer

log = logging.getLogger(__name__)


def evaluate(config: EvalConfig) -> EvalSummary:
    """Asks the questions; writes `out`/responses.jsonl while it runs and `out`/summary.json at the end.

    A question that cannot be asked is named and counts as wrong. Responses that are in the folder are kept.

    Raises:
        ValueError: `shards` holds no questions, or none that can be asked; a folder of `train_shards` has no shards;
            `out` has responses of another model, to other questions, or with other settings, or another process writes
            there.
    """
    load_functions(config.reward)  # a mistake in a user's own is found at once
    questions = read_prompts(config.shards, load_prompt_limits(config), config.limit)
    questions = choose_questions(questions, config.subset, config.seed)
    check_any(config.shards, questions)
    for train_shards in config.train_shards:
        load_samples(train_shards)  # names a wrong folder before any question is asked
    out = Path(config.out)
    claim_answers(config)
    with (
        hold_out(config.out),
        Scorer(config.reward, out) as scorer,
        AnswerLog(out / RESPONSES) as answers,
    ):
        asked = Asked(config=config, questions=questions, answers=answers)
        collect_answers(config, [asked], scorer)
        records = asked.sort()
        accuracies = [mean_accuracy(each) for each in records]
        prompts = [prompt for prompt, _ in questions]
        baseline = score_baseline(config, scorer.pool, prompts, accuracies)
        return write_summary(config, records, baseline)


def write_summary(config: EvalConfig, records: Sequence[Records], baseline: Baseline | None) -> EvalSummary:
    """Writes `out`/summary.json; names the questions that could not be asked."""
    summary = replace(summarize(records, seed=config.seed), baseline=baseline)
    write_json(Path(config.out) / SUMMARY, asdict(summary))
    if bad := summary.bad_questions:
        reasons = ", ".join(f"{reason} {count}" for reason, count in bad.items())
        log.warning(
            f"{sum(bad.values())} of {summary.count} questions of {config.shards} could not be asked and count as "
            f"wrong: {reasons}"
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
