"""Scores a Hugging Face folder on held-out questions: vLLM answers, the checker decides, with intervals.

Accuracy is averaged over the `n` answers of a question first (avg@n), and questions are what is resampled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.files import write_json
from data_pipeline.verify.pool import VerifyPool
from megatron_omr.train.run_folder import save_config
from rl.config import EvalConfig
from rl.groups import score_groups
from rl.prompts import read_prompts
from rl.rollout.engine import Engine
from rl.types import Group, Prompt

Interval = tuple[float, float]

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
    """Response lengths in tokens, over all answers."""

    mean: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True, kw_only=True)
class EvalSummary:
    """What summary.json holds."""

    accuracy: float
    ci95: Interval
    count: int  # questions
    by_kind: dict[str, Score]
    format: float  # share of answers in the recipe's form
    length: Lengths
    truncated: int  # answers cut off at the token limit
    decided_by: dict[str, int]  # which rule of the checker decided how many answers


def evaluate(config: EvalConfig) -> EvalSummary:
    """Ask the questions, write `out`/answers.jsonl as answers come and `out`/summary.json at the end.

    Raises:
        ValueError: `shards` holds no questions.
    """
    prompts = read_prompts(config.shards, config.limit, image=config.image)
    if not prompts:
        raise ValueError(f"shards={config.shards} holds no questions; write shards there with `omr data`")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)  # until the new one is there, nothing is evaluated
    save_config(config, out, resumes=False)
    groups = []
    with (
        VerifyPool(config.reward.checker) as pool,
        (out / "answers.jsonl").open("w") as answers,
        tqdm(total=len(prompts), desc="eval", unit="question", dynamic_ncols=True) as bar,
    ):
        engine = _start_engine(config)
        for chunk in _chunks(prompts, config):
            for group in score_groups(pool, config.reward, chunk, engine.generate(chunk, config.sampling, 0)):
                answers.writelines(json.dumps(row) + "\n" for row in answer_rows(group))
                groups.append(group)
            answers.flush()
            bar.update(len(chunk))
        engine.close()
    summary = summarize(groups, seed=config.seed)
    write_json(out / "summary.json", asdict(summary))
    return summary


def answer_rows(group: Group) -> list[dict[str, str | int | float]]:
    """A question's answers as JSON objects; `id` names the question."""
    return [
        {
            "id": group.prompt.ref.id,
            "kind": group.prompt.kind,
            "response": rollout.text,
            "extracted": reward.extracted,
            "answer": group.prompt.answer,
            "accuracy": reward.accuracy,
            "format": reward.format,
            "decided_by": reward.decided_by,
            "length": len(rollout.token_ids),
            "finish_reason": rollout.finish_reason,
        }
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
    ]


def summarize(groups: Sequence[Group], *, seed: int) -> EvalSummary:
    """Numbers over all answered questions, and by kind."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
    total = _score(groups, seed)
    kinds = sorted({group.prompt.kind for group in groups})
    rules = sorted({reward.decided_by for reward in rewards})
    return EvalSummary(
        accuracy=total.accuracy,
        ci95=total.ci95,
        count=total.count,
        by_kind={kind: _score([g for g in groups if g.prompt.kind == kind], seed) for kind in kinds},
        format=float(np.mean([reward.format for reward in rewards])),
        length=Lengths(
            mean=float(lengths.mean()),
            p50=float(np.median(lengths)),
            p95=float(np.quantile(lengths, 0.95)),
            max=float(lengths.max()),
        ),
        truncated=sum(rollout.finish_reason == "length" for rollout in rollouts),
        decided_by={rule: sum(reward.decided_by == rule for reward in rewards) for rule in rules},
    )


def bootstrap_ci95(values: Sequence[float], *, seed: int = 0) -> Interval:
    """95 % percentile bootstrap interval of the mean."""
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
    """Mean gain in accuracy from `before` to `after` (by question id), with its paired bootstrap ci95.

    Raises:
        ValueError: the two did not answer the same questions.
    """
    if before.keys() != after.keys() or not before:
        odd = sorted(before.keys() ^ after.keys())[:3]
        raise ValueError(
            f"before has {len(before)} and after {len(after)} questions; they must be the same, and any; "
            f"only on one side: {odd}. Evaluate both on the same prompts with the same limit"
        )
    gains = [after[question] - before[question] for question in sorted(before)]
    return float(np.mean(gains)), bootstrap_ci95(gains, seed=seed)


def _start_engine(config: EvalConfig) -> Engine:
    return Engine(
        config.engine,
        config.image,
        config.model,
        config.shards,
        config.seed,
        temperature=config.sampling.temperature,
    )


def _chunks(prompts: Sequence[Prompt], config: EvalConfig) -> list[Sequence[Prompt]]:
    """As many questions as the engine answers at a time."""
    size = max(1, config.engine.max_num_seqs // config.sampling.n)
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def _score(groups: Sequence[Group], seed: int) -> Score:
    accuracies = [float(np.mean([reward.accuracy for reward in group.rewards])) for group in groups]
    return Score(
        accuracy=float(np.mean(accuracies)), ci95=bootstrap_ci95(accuracies, seed=seed), count=len(groups)
    )
