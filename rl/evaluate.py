"""Scores a Hugging Face folder on held-out questions: accuracy by kind, with bootstrap intervals.

Accuracy is averaged over the `n` responses to a question first (avg@n); the bootstrap resamples questions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import BadSample
from data_pipeline.files import write_json
from data_pipeline.select.baseline import guess_answers
from data_pipeline.shards.format import read_sample
from data_pipeline.shards.index import load_samples
from data_pipeline.types import Sample, SampleRef
from data_pipeline.verify.pool import VerifyPool
from megatron_omr.train.run_folder import list_train_shards, save_config
from rl.config import EvalConfig
from rl.groups import build_records
from rl.prompts.stream import Question, load_prompt_limits, read_prompts
from rl.rewards.metrics import count_judged, mean_parts
from rl.rewards.registry import load_functions
from rl.rewards.scorer import Scorer
from rl.rollout.calls import Request
from rl.rollout.engine import Engine
from rl.types import Group, Prompt, Responses, Rollout

log = logging.getLogger(__name__)

Interval = tuple[float, float]
_Asked = tuple[Prompt, tuple[Rollout, ...], BadSample | None]

RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 100  # bounds the memory that many questions take


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean accuracy of `count` questions."""

    accuracy: float
    ci95: Interval
    count: int


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Response lengths in tokens, over all responses."""

    mean: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference of two accuracies of the same questions."""

    value: float
    ci95: Interval


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Scores of the most frequent training answers to the same questions, and how many of these were trained on."""

    train_shards: tuple[str, ...]
    train_samples: int  # that were read
    is_complete: bool  # these are all training samples
    by_text: Score  # the most frequent answer to each question's text
    by_kind: Score  # the most frequent answer to each kind of question
    difference: Difference  # the model less the better of the two, paired by question
    questions_seen: int  # questions that training samples ask: the same text with the same image files
    images_seen: int  # questions with an image that training samples have
    sentence: str


@dataclass(frozen=True, kw_only=True)
class EvalSummary(Score):
    """The content of summary.json."""

    by_kind: dict[str, Score]
    format: float  # mean of the responses
    parts: dict[str, float]  # of the reward, before weighting: means of the responses
    length: Lengths
    truncated: int  # responses cut off at the token limit
    decided_by: dict[str, int]  # responses by the rule of the checker that decided
    judged: dict[str, float]  # what the judge did; empty where there is none
    bad_questions: dict[str, int]  # those that could not be asked, which count as wrong, by reason
    baseline: Baseline | None = None  # None without training shards


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


def summarize(groups: Sequence[Group], *, seed: int) -> EvalSummary:
    """Returns the numbers over all questions, and by kind."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    verdicts = [reward.verdict for reward in rewards]
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts] or [0])
    kinds = sorted({group.prompt.kind for group in groups})
    return EvalSummary(
        **vars(_score(groups, seed)),
        by_kind={kind: _score([g for g in groups if g.prompt.kind == kind], seed) for kind in kinds},
        format=float(np.mean([verdict.format for verdict in verdicts] or [0.0])),
        parts=mean_parts(rewards),
        length=Lengths(
            mean=float(lengths.mean()),
            p50=float(np.median(lengths)),
            p95=float(np.quantile(lengths, 0.95)),
            max=float(lengths.max()),
        ),
        truncated=sum(rollout.finish_reason == "length" for rollout in rollouts),
        decided_by=dict(sorted(Counter(verdict.decided_by for verdict in verdicts).items())),
        judged=count_judged(rewards),
        bad_questions=dict(sorted(Counter(group.fault.reason for group in groups if group.fault).items())),
    )


def score_baseline(config: EvalConfig, pool: VerifyPool, groups: Sequence[Group]) -> Baseline | None:
    """Scores the most frequent training answers on the questions of `groups`.

    None without training shards, or where another function than the answer checker says what is right.

    Raises:
        ValueError: `config.train_shards` names a folder that holds no shards.
    """
    shards = config.train_shards or tuple(list_train_shards(config.model))
    if not shards or not config.baseline_samples or config.reward.correct_by != "accuracy":
        return None
    questions = [_read_question(config.shards, group.prompt.ref) for group in groups]
    guesses, samples, is_complete = guess_answers(questions, shards, limit=config.baseline_samples)
    answers = [group.prompt.answer for group in groups]
    asked = [(f"<answer>{g.by_text}</answer>", a) for g, a in zip(guesses, answers, strict=True)]
    asked += [(f"<answer>{g.by_kind}</answer>", a) for g, a in zip(guesses, answers, strict=True)]
    accuracies = [verdict.accuracy for verdict in pool.check_many(asked)]
    by_text, by_kind = accuracies[: len(groups)], accuracies[len(groups) :]
    best = max(by_text, by_kind, key=sum)
    gains = [ours - theirs for ours, theirs in zip(map(_accuracy, groups), best, strict=True)]
    difference = Difference(value=float(np.mean(gains)), ci95=bootstrap_ci95(gains, seed=config.seed))
    name = "question text" if best is by_text else "kind of question"
    return Baseline(
        train_shards=shards,
        train_samples=samples,
        is_complete=is_complete,
        by_text=_score_accuracies(by_text, config.seed),
        by_kind=_score_accuracies(by_kind, config.seed),
        difference=difference,
        questions_seen=sum(guess.question_seen for guess in guesses),
        images_seen=sum(guess.image_seen for guess in guesses),
        sentence=_compare(float(np.mean(best)), name, difference),
    )


def _compare(accuracy: float, name: str, difference: Difference) -> str:
    """Returns whether the model beats the baseline."""
    low, high = difference.ci95
    if low > 0:
        verdict = "the model beats it"
    elif high < 0:
        verdict = "the model is worse than that"
    else:
        verdict = "the model is not better than that, as far as these questions tell"
    return (
        f"The most frequent training answer to each {name} is right {accuracy:.1%} of the time; {verdict}: "
        f"{100 * difference.value:+.1f} points, 95 % CI {100 * low:+.1f} to {100 * high:+.1f}."
    )


def describe_seen(baseline: Baseline, count: int) -> str:
    """Returns how many of the `count` questions and of their images the training samples hold."""
    searched = f"{baseline.train_samples:,} training samples"
    searched = f"the {searched}" if baseline.is_complete else f"the {searched} that were searched (not all)"
    if not baseline.questions_seen and not baseline.images_seen:
        return f"None of the questions is among {searched}, nor an image of theirs."
    return (
        f"Among {searched} are {baseline.questions_seen:,} of the {count:,} questions (the same text and images), and "
        f"images of {baseline.images_seen:,}."
    )


def _read_question(shards: str, ref: SampleRef) -> Sample:
    """Returns the sample at `ref`; one without a text where it cannot be read."""
    try:
        return read_sample(shards, ref)
    except BadSample:
        return Sample(id=ref.id, source="", messages=())


def bootstrap_ci95(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Returns the 95 % percentile bootstrap interval of the mean."""
    data, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    blocks = (
        rng.integers(len(data), size=(RESAMPLES_AT_ONCE, len(data)))
        for _ in range(0, RESAMPLES, RESAMPLES_AT_ONCE)
    )
    means = np.concatenate([data[block].mean(axis=1) for block in blocks])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def paired_difference(
    before: Mapping[str, float], after: Mapping[str, float], *, seed: int = 0
) -> tuple[float, Interval]:
    """Returns the mean gain in accuracy from `before` to `after` (by question id) and its paired bootstrap ci95.

    Raises:
        ValueError: the two are not of the same questions.
    """
    if before.keys() != after.keys() or not before:
        odd = sorted(before.keys() ^ after.keys())[:3]
        raise ValueError(
            f"before has {len(before)} and after {len(after)} questions; they must be the same, and at least one; "
            f"only on one side: {odd}. Evaluate both on the same shards with the same limit"
        )
    gains = [after[question] - before[question] for question in sorted(before)]
    return float(np.mean(gains)), bootstrap_ci95(gains, seed=seed)


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


def _accuracy(group: Group) -> float:
    """Returns the mean accuracy of the responses to a question; 0 where it could not be asked."""
    return float(np.mean([reward.verdict.accuracy for reward in group.rewards] or [0.0]))


def _score(groups: Sequence[Group], seed: int) -> Score:
    return _score_accuracies(list(map(_accuracy, groups)), seed)


def _score_accuracies(accuracies: Sequence[float], seed: int) -> Score:
    """Returns the mean of the accuracies of questions."""
    return Score(
        accuracy=float(np.mean(accuracies)), ci95=bootstrap_ci95(accuracies, seed=seed), count=len(accuracies)
    )
