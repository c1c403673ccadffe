"""Records of the RL loop: Prompt -> Rollout -> Reward -> TrainRollout -> RolloutBatch.

Legend: T packed tokens, G rollouts of one prompt. Imports neither ray, vllm nor megatron.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import BadSample
from data_pipeline.types import PackedBatch, SampleRef
from data_pipeline.verify.check import Verdict
from data_pipeline.verify.record import ScoredResponse

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question by reference: engine and trainer read text and images from the shard themselves."""

    ref: SampleRef
    answer: str  # the reference
    source: str = ""  # the question's corpus
    kind: str = ""  # metadata["kind"], for accuracy by kind
    question: str = ""  # the user's text without image marks
    num_tokens: int = 0  # with those of its images
    patches: tuple[int, ...] = ()  # of each image


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """One response, as an engine returned it. Its numbers are arrays: Ray copies them as they are, and once a node."""

    token_ids: NDArray[np.int32]  # response only, ends with <|im_end|> unless truncated
    logprobs: NDArray[np.float32]  # the engine's, at the sampling temperature, one per response token
    response: str  # decoded without special tokens
    finish_reason: str  # stop | length
    policy_version: int  # of the weights that wrote it


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The result of asking an engine one prompt: its rollouts, or why the prompt cannot be asked."""

    rollouts: tuple[Rollout, ...] = ()
    fault: str = ""  # the reason of a BadSample: the prompt cannot be asked
    detail: str = ""  # of the fault


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward of one response, and the verdict it is computed from."""

    total: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt with its G rollouts and their rewards."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    rewards: tuple[Reward, ...]
    fault: BadSample | None = (
        None  # in evaluation: why the prompt could not be asked, so that it has no rollouts
    )


@dataclass(frozen=True, kw_only=True)
class AskedResponse(ScoredResponse):
    """A response as RL and evaluation write it to disk."""

    fault: str = ""  # why the question could not be asked; then there is one record without a response


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainRollout:
    """A response with its advantage, as the trainer learns from it. The prompt's images stay in the shard."""

    ref: SampleRef
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]  # the engine's
    advantage: float
    prompt_tokens: int = 0  # with those of its images
    prompt_patches: tuple[int, ...] = ()  # of each image


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch:
    """One packed micro-batch of rollouts. Per-token tensors are shifted as in PackedBatch."""

    packed: PackedBatch
    advantages_T: Tensor  # float32, 0 outside the response
    old_logprobs_T: Tensor | None  # float32; None: on-policy, the current logprobs stand in (detached)
    rollout_logprobs_T: Tensor  # float32, the engine's

    def to(self, device: str) -> RolloutBatch:
        """Returns the batch with its tensors on `device`."""
        old = self.old_logprobs_T
        return RolloutBatch(
            packed=self.packed.to(device),
            advantages_T=self.advantages_T.to(device),
            old_logprobs_T=None if old is None else old.to(device),
            rollout_logprobs_T=self.rollout_logprobs_T.to(device),
        )
