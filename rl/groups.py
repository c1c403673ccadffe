"""The groups of one step: scores, advantages, metrics and the records on disk. No ray, no vllm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from data_pipeline.verify.pool import VerifyPool
from rl.algorithms.advantage import compute_advantages, has_signal
from rl.algorithms.config import AlgorithmConfig
from rl.rewards.compute import compute_reward
from rl.rewards.config import RewardConfig
from rl.types import AskedResponse, Group, Prompt, Rollout, TrainRollout

log = logging.getLogger(__name__)


def score_groups(
    pool: VerifyPool, config: RewardConfig, asked: Sequence[tuple[Prompt, Sequence[Rollout]]]
) -> list[Group]:
    """Returns a group for each prompt: its rollouts and their rewards."""
    pairs = [(rollout.response, prompt.answer) for prompt, rollouts in asked for rollout in rollouts]
    rewards = (compute_reward(verdict, config) for verdict in pool.check_many(pairs))
    return [
        Group(prompt=prompt, rollouts=tuple(rollouts), rewards=tuple(islice(rewards, len(rollouts))))
        for prompt, rollouts in asked
    ]


def assign_advantages(group: Group) -> list[TrainRollout]:
    """Returns a group's responses with their advantages."""
    advantages_G = compute_advantages(torch.tensor([reward.total for reward in group.rewards]))
    return [
        TrainRollout(
            ref=group.prompt.ref,
            token_ids=rollout.token_ids,
            logprobs=rollout.logprobs,
            advantage=advantage,
            prompt_tokens=group.prompt.num_tokens,
            prompt_patches=group.prompt.patches,
        )
        for rollout, advantage in zip(group.rollouts, advantages_G.tolist(), strict=True)
    ]


def select_groups(algorithm: AlgorithmConfig, groups: Sequence[Group]) -> list[int]:
    """Returns the indices of the groups to train on: all, or those for which has_signal is true."""
    return [i for i, g in enumerate(groups) if not algorithm.drop_equal_groups or has_signal(g.rewards)]


def split_groups(groups: Sequence[Sequence[TrainRollout]], count: int) -> list[list[TrainRollout]]:
    """Returns the rollouts in at most `count` equal parts; groups stay whole, empty parts are left out."""
    parts = np.array_split(np.arange(len(groups)), count)
    return [[rollout for i in part for rollout in groups[i]] for part in parts if len(part)]


def compute_metrics(
    groups: Sequence[Group], *, num_kept: int, seconds: Mapping[str, float]
) -> dict[str, float]:
    """Returns the metrics of one step's responses, over all groups, and the seconds of its phases."""
    rewards = [reward for group in groups for reward in group.rewards]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    verdicts = [reward.verdict for reward in rewards]
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
    return {
        "reward": float(np.mean([r.total for r in rewards])),
        "reward_accuracy": float(np.mean([v.accuracy for v in verdicts])),
        "reward_format": float(np.mean([v.format for v in verdicts])),
        "reward_timeouts": sum(v.decided_by == "timeout" for v in verdicts),
        "reward_errors": sum(v.decided_by == "error" for v in verdicts),
        "response_len_mean": float(lengths.mean()),
        "response_len_max": float(lengths.max()),
        "truncated": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "groups_kept": num_kept,
        "groups_total": len(groups),
        "policy_version": min(rollout.policy_version for rollout in rollouts),
        "response_tokens": float(lengths.sum()),
        "tokens_per_second": float(lengths.sum()) / seconds["seconds_generate"],
        **seconds,
    }


class SignalWatch:
    """Warns at a checkpoint when nothing was learned since the one before."""

    def __init__(self) -> None:
        self._has_learned = False
        self._accuracies: list[float] = []  # mean of each group

    def add(self, groups: Sequence[Group], kept: Sequence[Sequence[TrainRollout]]) -> None:
        """Counts one step's groups, and those that were learned from."""
        self._has_learned |= any(rollout.advantage != 0 for group in kept for rollout in group)
        self._accuracies += [float(np.mean([r.verdict.accuracy for r in g.rewards])) for g in groups]

    def warn(self, step: int) -> None:
        """Logs that the checkpoint of `step` steps holds nothing new, and why, if so; counts anew."""
        total, right, wrong = len(self._accuracies), self._accuracies.count(1), self._accuracies.count(0)
        if not self._has_learned:
            log.warning(
                f"step {step}: nothing was learned since the last checkpoint: the responses to each of {total} "
                f"prompts had equal accuracy ({right} all right, {wrong} all wrong); use prompts of another "
                "difficulty, or raise sampling.n or prompts_per_step"
            )
        self._has_learned, self._accuracies = False, []


def build_records(group: Group) -> list[AskedResponse]:
    """Returns the records of a group's responses, or of its fault, as they are written to disk."""
    prompt = group.prompt
    blank = AskedResponse(id=prompt.ref.id, source=prompt.source, kind=prompt.kind, answer=prompt.answer)
    if group.fault:
        return [replace(blank, fault=str(group.fault))]
    return [
        replace(
            blank,
            rollout=number,
            response=rollout.response,
            response_len=len(rollout.token_ids),
            finish_reason=rollout.finish_reason,
            reward=reward.total,
        ).with_verdict(reward.verdict)
        for number, (rollout, reward) in enumerate(zip(group.rollouts, group.rewards, strict=True))
    ]


def build_row(group: Group) -> dict[str, Any]:
    """Returns a group as one JSON object of rollouts.jsonl; its images stay in the shard."""
    return {
        "ref": asdict(group.prompt.ref),
        "question": group.prompt.question,
        "policy_version": group.rollouts[0].policy_version,
        "responses": [asdict(record) for record in build_records(group)],
    }
