"""Records of the RL loop: Prompt -> Rollout -> Reward -> TrainRollout -> RolloutBatch.

Legend: T packed tokens, G rollouts of one prompt. Imports neither ray, vllm nor megatron.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

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
    shards: str = (
        ""  # where `ref` is, for held-out questions; of all others, the shards of the run or evaluation
    )
    source: str = ""  # the question's corpus
    kind: str = ""  # metadata["kind"], for accuracy by kind
    question: str = ""  # the user's text without image marks
    num_tokens: int = 0  # with those of its images
    patches: tuple[int, ...] = ()  # of each image


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """The tokens of a response, and the weights that sampled each."""

    token_ids: NDArray[np.int32]  # response only, ends with <|im_end|> unless truncated
    versions: tuple[tuple[int, int], ...]
    """Spans of tokens, in order: the version of the weights that sampled them, and how many they are."""
    routed_experts: NDArray[np.uint8 | np.uint16] | None = None
    """[tokens of prompt and response - 1, language layers, experts of a token], with algorithm.router_replay. The last
    token of a response was not computed any more."""

    @property
    def oldest_version(self) -> int:
        return min(version for version, _ in self.versions)

    @property
    def newest_version(self) -> int:
        return max(version for version, _ in self.versions)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout(Sampled):
    """One response, as an engine returned it. Its numbers are arrays: Ray copies them as they are, and once a node."""

    logprobs: NDArray[np.float32]  # the engine's, at the sampling temperature, one per response token
    response: str  # decoded without special tokens
    finish_reason: str  # stop | length


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
    parts: Mapping[str, float] = field(default_factory=dict)  # by function, before weighting
    errors: tuple[str, ...] = ()  # functions that failed: their part is 0
    judged: Literal["off", "no", "asked", "cached"] = "off"


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """The reference solution of a prompt as a member of its group, see algorithms/solution.py."""

    token_ids: NDArray[np.int32]  # ends with <|im_end|>
    reward: float  # after the controls of algorithm.solution
    accuracy: float
    is_smoothed: bool  # the reward is the rollouts' mean, and the advantage 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt with its G rollouts and their rewards."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    rewards: tuple[Reward, ...]
    solution: Solution | None = None
    fault: BadSample | None = (
        None  # in evaluation: why the prompt could not be asked, so that it has no rollouts
    )


@dataclass(frozen=True, kw_only=True)
class AskedResponse(ScoredResponse):
    """A response as RL and evaluation write it to disk."""

    fault: str = ""  # why the question could not be asked; then there is one record without a response
    parts: dict[str, float] = field(default_factory=dict)  # of the reward, before weighting
    judged: str = "off"  # Reward.judged


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainRollout(Sampled):
    """A response with its advantage, as the trainer learns from it. The prompt's images stay in the shard."""

    ref: SampleRef
    logprobs: NDArray[np.float32] | None  # the engine's; None: the reference solution, which has no versions
    advantage: float
    prompt_tokens: int = 0  # with those of its images
    prompt_patches: tuple[int, ...] = ()  # of each image

    def find_fresh(self, version: int) -> NDArray[np.bool_]:
        """Returns which tokens an engine sampled from weights of this version; none of a solution's."""
        if self.logprobs is None:
            return np.zeros(len(self.token_ids), dtype=bool)
        return np.repeat([own == version for own, _ in self.versions], [count for _, count in self.versions])


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch:
    """One packed micro-batch of rollouts. Per-token tensors are shifted as in PackedBatch.

    A response token is fresh (an engine sampled it from the weights before this step), stale (from older ones, so
    that its old logprob is the engine's) or of a reference solution, which no engine sampled.
    """

    packed: PackedBatch
    advantages_T: Tensor  # float32, 0 outside the response
    old_logprobs_T: Tensor | None  # float32; None: on-policy, the current logprobs stand in (detached)
    rollout_logprobs_T: Tensor  # float32, the engine's; 0 where there are none
    reference_logprobs_T: Tensor | None = None  # float32, of the frozen reference; None: there is none
    fresh_T: Tensor | None = None  # float32, 1 on fresh tokens; None: all response tokens are fresh
    stale_T: Tensor | None = None  # bool; None: none is stale

    @property
    def sampled_T(self) -> Tensor:
        """1 on the tokens that an engine sampled: all of the response but those of a reference solution."""
        if self.fresh_T is None:
            return self.packed.loss_mask
        return self.fresh_T if self.stale_T is None else self.fresh_T + self.stale_T

    def with_old_logprobs(self, logprobs_T: Tensor, *, decoupled: bool = False) -> RolloutBatch:
        """Returns the batch with old logprobs, these of the trainer; unless decoupled, the engine's on stale tokens."""
        if self.stale_T is not None and not decoupled:
            logprobs_T = self.rollout_logprobs_T.where(self.stale_T, logprobs_T)
        return replace(self, old_logprobs_T=logprobs_T)

    def to(self, device: str) -> RolloutBatch:
        """Returns the batch with its tensors on `device`."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})
