"""Scores a Hugging Face folder on held-out questions: accuracy by kind, with bootstrap intervals.

Accuracy is averaged over the `n` responses to a question first (avg@n); the bootstrap resamples questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import BadSample
from data_pipeline.files import write_json
from data_pipeline.verify.pool import VerifyPool
from megatron_omr.train.run_folder import save_config
from rl.config import EvalConfig
from rl.groups import build_records, score_groups
from rl.prompts import build_question_error, read_prompts
from rl.rollout.engine import Engine
from rl.types import Group, Prompt, Responses, Rollout

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
    """Response lengths in tokens, over all responses."""

    mean: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True, kw_only=True)
class EvalSummary(Score):
    """The content of summary.json."""

    by_kind: dict[str, Score]
    format: float  # mean of the responses
    length: Lengths
    truncated: int  # responses cut off at the token limit
    decided_by: dict[str, int]  # responses by the rule of the checker that decided


def evaluate(config: EvalConfig) -> EvalSummary:
    """Asks the questions; writes `out`/responses.jsonl while it runs and `out`/summary.json at the end.

    Raises:
        ValueError: `shards` holds no questions, or one that cannot be asked.
    """
    prompts = read_prompts(config.shards, config.limit, image=config.image)
    if not prompts:
        raise ValueError(f"shards={config.shards} holds no questions; write shards there with `omr data`")
    out = Path(config.out)
    (out / "summary.json").unlink(missing_ok=True)  # an old one would describe other responses
    save_config(config, out, resumes=False)
    groups = []
    with (
        VerifyPool(config.reward.checker) as pool,
        closing(Engine(config)) as engine,
        # written in place, so that it can be followed; summary.json says that it is complete
        (out / "responses.jsonl").open("wb") as lines,
        tqdm(total=len(prompts), desc="eval", unit="question", dynamic_ncols=True) as bar,
    ):
        size = max(1, config.engine.max_num_seqs // config.sampling.n)  # as many as it generates at once
        for chunk in (prompts[start : start + size] for start in range(0, len(prompts), size)):
            asked = [
                (prompt, _rollouts(prompt, responses))
                for prompt, responses in zip(chunk, engine.generate(chunk, config.sampling, 0), strict=True)
            ]
            for group in score_groups(pool, config.reward, asked):
                lines.writelines(record.to_json() for record in build_records(group))
                groups.append(group)
            lines.flush()
            bar.update(len(chunk))
    summary = summarize(groups, seed=config.seed)
    write_json(out / "summary.json", asdict(summary))
    return summary


def summarize(groups: Sequence[Group], *, seed: int) -> EvalSummary:
    """Returns the numbers over all questions, and by kind."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    verdicts = [reward.verdict for group in groups for reward in group.rewards]
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
    kinds = sorted({group.prompt.kind for group in groups})
    return EvalSummary(
        **vars(_score(groups, seed)),
        by_kind={kind: _score([g for g in groups if g.prompt.kind == kind], seed) for kind in kinds},
        format=float(np.mean([verdict.format for verdict in verdicts])),
        length=Lengths(
            mean=float(lengths.mean()),
            p50=float(np.median(lengths)),
            p95=float(np.quantile(lengths, 0.95)),
            max=float(lengths.max()),
        ),
        truncated=sum(rollout.finish_reason == "length" for rollout in rollouts),
        decided_by=dict(sorted(Counter(verdict.decided_by for verdict in verdicts).items())),
    )


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


def _rollouts(prompt: Prompt, responses: Responses) -> tuple[Rollout, ...]:
    if responses.fault:
        raise build_question_error(prompt.ref, BadSample(responses.fault, responses.detail))
    return responses.rollouts


def _score(groups: Sequence[Group], seed: int) -> Score:
    accuracies = [float(np.mean([reward.verdict.accuracy for reward in group.rewards])) for group in groups]
    return Score(
        accuracy=float(np.mean(accuracies)), ci95=bootstrap_ci95(accuracies, seed=seed), count=len(groups)
    )
