"""What flows through the RL loop: Prompt -> Rollout -> rewards -> advantages -> RolloutBatch.

Legend: T packed tokens, G answers to one prompt. Imports neither ray, vllm nor megatron.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.types import PackedBatch, SampleRef

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question by reference: engine and trainer read text and images from the shard themselves."""

    ref: SampleRef
    answer: str  # reference answer
    kind: str = ""  # metadata["kind"], for accuracy by kind


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One answer, as an engine gave it."""

    token_ids: tuple[int, ...]  # response only, ends with <|im_end|> unless truncated
    logprobs: tuple[float, ...]  # the engine's, at the sampling temperature, one per response token
    text: str  # decoded without special tokens
    finish_reason: str  # stop | length
    policy_version: int  # weights that wrote it


@dataclass(frozen=True, kw_only=True)
class RewardParts:
    """Every part is kept, so that a report can show what paid."""

    total: float
    accuracy: float
    format: float
    extracted: str = ""  # what the checker took as the answer
    decided_by: str = ""  # exact | choice | number | math | judge | none | timeout | error


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt with its G scored answers."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    rewards: tuple[RewardParts, ...]


@dataclass(frozen=True, kw_only=True)
class TrainRollout:
    """What the trainer learns from: an answer and its advantage. The prompt's images stay in the shard."""

    ref: SampleRef
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # the engine's
    advantage: float


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch:
    """One packed micro-batch of rollouts. Per-token tensors are shifted as in PackedBatch."""

    packed: PackedBatch
    advantages_T: Tensor  # float32, 0 outside the response
    old_logprobs_T: Tensor | None  # float32; None: on-policy, the current logprobs stand in (detached)
    rollout_logprobs_T: Tensor  # float32, the engine's

    def to(self, device: str) -> RolloutBatch:
        """The same batch with its tensors on `device`."""
        old = self.old_logprobs_T
        return RolloutBatch(
            packed=self.packed.to(device),
            advantages_T=self.advantages_T.to(device),
            old_logprobs_T=None if old is None else old.to(device),
            rollout_logprobs_T=self.rollout_logprobs_T.to(device),
        )
