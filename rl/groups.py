"""The groups of one step: advantages and the records on disk. No ray, no vllm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from rl.algorithms.advantage import TaskScale, compute_advantages, has_signal
from rl.algorithms.config import AlgorithmConfig
from rl.types import AskedResponse, Group, Rollout, TrainRollout


def assign_advantages(group: Group, algorithm: AlgorithmConfig, scale: TaskScale) -> list[TrainRollout]:
    """Returns a group's responses, the solution last, with their advantages; `scale` has counted the new groups.

    With mask_truncated, truncated responses count in the others' advantages and are left out.
    """
    solution, prompt = group.solution, group.prompt
    rewards = [reward.total for reward in group.rewards] + ([solution.reward] if solution else [])
    advantages = compute_advantages(
        torch.tensor(rewards), algorithm.advantage_name, task_std=scale.std(prompt)
    ).tolist()
    place = partial(
        TrainRollout, ref=prompt.ref, prompt_tokens=prompt.num_tokens, prompt_patches=prompt.patches
    )
    members = [
        place(
            token_ids=rollout.token_ids,
            logprobs=rollout.logprobs,
            versions=rollout.versions,
            routed_experts=rollout.routed_experts,
            advantage=advantage,
        )
        for rollout, advantage in zip(group.rollouts, advantages, strict=False)
        if is_trained(rollout, algorithm)
    ]
    if solution:
        advantage = 0.0 if solution.is_smoothed else advantages[-1]  # rounding may make it another number
        members.append(place(token_ids=solution.token_ids, logprobs=None, versions=(), advantage=advantage))
    return members


def is_trained(rollout: Rollout, algorithm: AlgorithmConfig) -> bool:
    """Returns False for a truncated response that mask_truncated leaves out."""
    return not (algorithm.mask_truncated and rollout.finish_reason == "length")


def select_groups(algorithm: AlgorithmConfig, groups: Sequence[Group]) -> list[int]:
    """Returns the indices of the groups to train on: all, or those for which has_signal is true.

    A group without any response to train on is never one; a solution is a response.
    """
    has_any = [
        group.solution is not None or any(is_trained(rollout, algorithm) for rollout in group.rollouts)
        for group in groups
    ]
    chosen = [
        not algorithm.drop_equal_groups or has_signal(group.rewards, group.solution) for group in groups
    ]
    return [i for i in range(len(groups)) if has_any[i] and chosen[i]]


def split_groups(groups: Sequence[Sequence[TrainRollout]], count: int) -> list[list[TrainRollout]]:
    """Returns the rollouts in at most `count` equal parts; groups stay whole, empty parts are left out."""
    parts = np.array_split(np.arange(len(groups)), count)
    return [[rollout for i in part for rollout in groups[i]] for part in parts if len(part)]


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
            parts=dict(reward.parts),
            judged=reward.judged,
        ).with_verdict(reward.verdict)
        for number, (rollout, reward) in enumerate(zip(group.rollouts, group.rewards, strict=True))
    ]


def build_row(group: Group) -> dict[str, Any]:
    """Returns a group as one JSON object of rollouts.jsonl; its images stay in the shard."""
    return {
        "ref": asdict(group.prompt.ref),
        "question": group.prompt.question,
        "policy_version": min(rollout.oldest_version for rollout in group.rollouts),
        "newest_version": max(rollout.newest_version for rollout in group.rollouts),
        "responses": [asdict(record) for record in build_records(group)],
    }
