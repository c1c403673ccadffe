"""Scored groups of rollouts, as an engine and the checker would return them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.types import SampleRef
from data_pipeline.verify.check import Verdict
from rl.algorithms.advantage import TaskScale
from rl.algorithms.config import AlgorithmConfig
from rl.groups import assign_advantages
from rl.types import Group, Prompt, Reward, Rollout, TrainRollout


def make_prompt(number: int = 0, *, kind: str = "") -> Prompt:
    ref = SampleRef(id=str(number), shard="", offset=number, size=0)
    return Prompt(ref=ref, answer="7", source="digits", kind=kind, question="How many?")


def make_reward(accuracy: float, form: float = 1.0) -> Reward:
    decided_by = "exact" if accuracy else "none"
    verdict = Verdict(accuracy=accuracy, format=form, extracted="7", decided_by=decided_by)
    parts = {"accuracy": accuracy, "format": form}
    return Reward(total=0.9 * accuracy + 0.1 * form, verdict=verdict, parts=parts)


def make_rollout(
    length: int = 3, *, response: str = "<answer>7</answer>", finish_reason: str = "stop"
) -> Rollout:
    return Rollout(
        token_ids=np.arange(10, 10 + length, dtype=np.int32),
        logprobs=-0.1 * np.arange(1, length + 1, dtype=np.float32),
        response=response,
        finish_reason=finish_reason,
        versions=((4, length),),
    )


def make_group(
    prompt: Prompt,
    accuracies: Sequence[float],
    *,
    lengths: Sequence[int] | None = None,
    finish_reason: str = "stop",
) -> Group:
    """Returns a group whose i-th response has `lengths[i]` tokens: 3, 4, 5 and so on by default."""
    lengths = lengths or range(3, 3 + len(accuracies))
    rollouts = tuple(make_rollout(length, finish_reason=finish_reason) for length in lengths)
    return Group(prompt=prompt, rollouts=rollouts, rewards=tuple(map(make_reward, accuracies)))


def train_rollouts(group: Group) -> list[TrainRollout]:
    """Returns the responses of a group with GSPO's advantages."""
    return assign_advantages(group, AlgorithmConfig(), TaskScale(0.99))
