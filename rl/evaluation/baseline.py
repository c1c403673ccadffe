"""The baseline of an evaluation: the most frequent training answers to the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import BadSample
from data_pipeline.select.baseline import guess_answers
from data_pipeline.shards.format import read_sample
from data_pipeline.types import Sample, SampleRef
from data_pipeline.verify.pool import VerifyPool
from megatron_omr.train.run_folder import list_train_shards
from rl.config import EvalConfig
from rl.evaluation.intervals import Difference, Score, bootstrap_ci95, score_accuracies
from rl.types import Prompt


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


def score_baseline(
    config: EvalConfig, pool: VerifyPool, prompts: Sequence[Prompt], accuracies: Sequence[float]
) -> Baseline | None:
    """Scores the most frequent training answers on these questions, beside the accuracies of the model.

    None without training shards, or where another function than the answer checker says what is right.

    Raises:
        ValueError: `config.train_shards` names a folder that holds no shards.
    """
    shards = config.train_shards or tuple(list_train_shards(config.model))
    if not shards or not config.baseline_samples or config.reward.correct_by != "accuracy":
        return None
    questions = [_read_question(config.shards, prompt.ref) for prompt in prompts]
    guesses, samples, is_complete = guess_answers(questions, shards, limit=config.baseline_samples)
    answers = [prompt.answer for prompt in prompts]
    asked = [(f"<answer>{g.by_text}</answer>", a) for g, a in zip(guesses, answers, strict=True)]
    asked += [(f"<answer>{g.by_kind}</answer>", a) for g, a in zip(guesses, answers, strict=True)]
    found = [verdict.accuracy for verdict in pool.check_many(asked)]
    by_text, by_kind = found[: len(prompts)], found[len(prompts) :]
    best = max(by_text, by_kind, key=sum)
    gains = [ours - theirs for ours, theirs in zip(accuracies, best, strict=True)]
    difference = Difference(value=float(np.mean(gains)), ci95=bootstrap_ci95(gains, seed=config.seed))
    name = "question text" if best is by_text else "kind of question"
    return Baseline(
        train_shards=shards,
        train_samples=samples,
        is_complete=is_complete,
        by_text=score_accuracies(by_text, config.seed),
        by_kind=score_accuracies(by_kind, config.seed),
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
