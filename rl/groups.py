"""What happens to the groups of one step: scoring, advantages, metrics, rows for the gallery. No ray, no vllm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.shards.format import read_sample
from data_pipeline.types import IMAGE_MARK
from data_pipeline.verify.pool import VerifyPool
from rl.algorithms.advantage import group_advantages
from rl.algorithms.filters import has_signal
from rl.config import AlgorithmConfig, RewardConfig
from rl.rewards import score_rollouts
from rl.types import Group, Prompt, Rollout, TrainRollout


def score_groups(
    pool: VerifyPool, reward: RewardConfig, prompts: Sequence[Prompt], answers: Sequence[Sequence[Rollout]]
) -> list[Group]:
    """Reward every answer of every prompt."""
    responses = [rollout.text for rollouts in answers for rollout in rollouts]
    references = [prompt.answer for prompt, rollouts in zip(prompts, answers, strict=True) for _ in rollouts]
    rewards = iter(score_rollouts(pool, reward, responses, references))
    return [
        Group(prompt=prompt, rollouts=tuple(rollouts), rewards=tuple(next(rewards) for _ in rollouts))
        for prompt, rollouts in zip(prompts, answers, strict=True)
    ]


def kept_groups(algorithm: AlgorithmConfig, groups: Sequence[Group]) -> list[Group]:
    """The groups to learn from: all, or those with a signal."""
    return [g for g in groups if not algorithm.drop_equal_groups or has_signal(g.rewards)]


def train_rollouts(group: Group) -> list[TrainRollout]:
    """A group's answers with their advantages."""
    advantages_G = group_advantages(torch.tensor([reward.total for reward in group.rewards]))
    return [
        TrainRollout(
            ref=group.prompt.ref, token_ids=rollout.token_ids, logprobs=rollout.logprobs, advantage=advantage
        )
        for rollout, advantage in zip(group.rollouts, advantages_G.tolist(), strict=True)
    ]


def minibatches(groups: Sequence[Group], count: int) -> list[list[TrainRollout]]:
    """The groups' rollouts in at most `count` equal parts; groups stay whole, empty parts are left out."""
    parts = np.array_split(np.arange(len(groups)), count)
    return [[rollout for i in part for rollout in train_rollouts(groups[i])] for part in parts if len(part)]


def rollout_metrics(groups: Sequence[Group], kept: Sequence[Group]) -> dict[str, float]:
    """What the answers of one step looked like, over all groups."""
    rewards = [reward for group in groups for reward in group.rewards]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = np.array([len(rollout.token_ids) for rollout in rollouts])
    return {
        "reward": float(np.mean([r.total for r in rewards])),
        "reward_accuracy": float(np.mean([r.accuracy for r in rewards])),
        "reward_format": float(np.mean([r.format for r in rewards])),
        "reward_timeouts": float(sum(r.decided_by == "timeout" for r in rewards)),
        "reward_errors": float(sum(r.decided_by == "error" for r in rewards)),
        "response_len_mean": float(lengths.mean()),
        "response_len_max": float(lengths.max()),
        "truncated": float(np.mean([rollout.finish_reason == "length" for rollout in rollouts])),
        "groups_kept": float(len(kept)),
        "groups_total": float(len(groups)),
        "policy_version": float(min(rollout.policy_version for rollout in rollouts)),
        "response_tokens": float(lengths.sum()),
    }


def gallery_row(folder: str | Path, group: Group) -> dict[str, Any]:
    """A group as one JSON object; its images stay where they are, in the shard."""
    ref = group.prompt.ref
    question = next(m.content for m in read_sample(folder, ref).messages if m.role == "user")
    return {
        "prompt_id": ref.id,
        "shard": ref.shard,
        "offset": ref.offset,
        "size": ref.size,
        "kind": group.prompt.kind,
        "question": question.replace(IMAGE_MARK, "").strip(),
        "answer": group.prompt.answer,
        "policy_version": group.rollouts[0].policy_version,
        "rollouts": [
            {
                "text": rollout.text,
                "reward": reward.total,
                "accuracy": reward.accuracy,
                "format": reward.format,
                "extracted": reward.extracted,
                "decided_by": reward.decided_by,
                "length": len(rollout.token_ids),
                "finish_reason": rollout.finish_reason,
            }
            for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
        ],
    }
