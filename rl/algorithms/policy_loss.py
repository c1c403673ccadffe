"""Policy losses side by side: pure functions from logprobs and advantages to sums and counts.

They need no process group: logprobs come reduced over TP and gathered over CP, and the step divides by global
counts. Adding an algorithm is adding a function and its line in POLICY_LOSSES.

Legend: T packed tokens, S sequences (responses). mask_T is 1 on response tokens; ratio = pi / pi_old.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_omr.train.losses import LossOutput, masked_sum
from rl.algorithms.config import AlgorithmConfig
from rl.types import RolloutBatch

DUAL_CLIP = 3.0
"""GRPO: a bad token's loss stops growing at this ratio."""
MAX_TOKEN_LOG_RATIO = 20.0
MAX_SEQUENCE_LOG_RATIO = 10.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyLossInputs:
    """The arguments of every policy loss."""

    logprobs_T: Tensor  # float32, the policy in training; carries the gradient
    old_logprobs_T: Tensor | None  # float32, the policy that sampled; None: on-policy, so the ratio is 1
    advantages_T: Tensor  # float32, the response's advantage on each of its tokens
    mask_T: Tensor  # 1 on response tokens
    cu_seqlens: Tensor  # [S + 1] int, 0 first, T last
    clip_low: float
    clip_high: float

    def log_ratio_T(self) -> Tensor:
        """Returns log(pi / pi_old), 0 outside the response."""
        old_T = self.logprobs_T.detach() if self.old_logprobs_T is None else self.old_logprobs_T
        return torch.where(self.mask_T != 0, self.logprobs_T - old_T, 0.0)

    def sum_by_sequence(self, values_T: Tensor) -> Tensor:
        """Returns the sum of each sequence, [T] -> [S]."""
        return torch.segment_reduce(values_T, "sum", lengths=self.cu_seqlens.diff().long(), unsafe=True)


def gspo_loss(inputs: PolicyLossInputs) -> LossOutput:
    """Computes GSPO (arXiv 2507.18071): one ratio a sequence, the geometric mean of its tokens'; mean over sequences.

    s = exp(mean_t log ratio_t),  loss = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A).
    Sequences without a response token (padding) count for nothing.
    """
    log_ratio_T, mask_T = inputs.log_ratio_T(), (inputs.mask_T != 0).to(inputs.logprobs_T.dtype)
    len_S = inputs.sum_by_sequence(mask_T)
    divisor_S = len_S.clamp(min=1)
    advantages_S = inputs.sum_by_sequence(inputs.advantages_T * mask_T) / divisor_S
    ratio_S = (inputs.sum_by_sequence(log_ratio_T) / divisor_S).clamp(max=MAX_SEQUENCE_LOG_RATIO).exp()
    loss_S, is_clipped_S = _clipped(ratio_S, advantages_S, inputs)

    num_tokens, num_sequences = len_S.sum(), (len_S > 0).sum()
    return LossOutput(
        loss_sum=masked_sum(loss_S, len_S),
        count=num_sequences,
        metrics={
            "clip_fraction": ((is_clipped_S * len_S).sum(), num_tokens),  # of tokens, comparable with GRPO
            "ratio": (masked_sum(ratio_S.detach(), len_S), num_sequences),
            "policy_kl": (masked_sum(_k3(log_ratio_T.detach()), mask_T), num_tokens),
        },
    )


def grpo_loss(inputs: PolicyLossInputs) -> LossOutput:
    """Computes GRPO: one ratio a token, clipped as in PPO with a dual clip; mean over the tokens of the global batch.

    loss = -min(r A, clip(r) A), and for A < 0 at most -DUAL_CLIP * A.
    """
    log_ratio_T, mask_T = inputs.log_ratio_T(), inputs.mask_T
    ratio_T = log_ratio_T.clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO).exp()
    advantages_T = inputs.advantages_T
    loss_T, is_clipped_T = _clipped(ratio_T, advantages_T, inputs)
    bound_T = torch.where(advantages_T < 0, -DUAL_CLIP * advantages_T, torch.inf)

    num_tokens = (mask_T != 0).sum()
    return LossOutput(
        loss_sum=masked_sum(torch.minimum(loss_T, bound_T), mask_T),
        count=num_tokens,
        metrics={
            "clip_fraction": (masked_sum(is_clipped_T, mask_T), num_tokens),
            "dual_clip_fraction": (masked_sum((loss_T > bound_T).float(), mask_T), num_tokens),
            "ratio": (masked_sum(ratio_T.detach(), mask_T), num_tokens),
            "policy_kl": (masked_sum(_k3(log_ratio_T.detach()), mask_T), num_tokens),
        },
    )


POLICY_LOSSES: dict[str, Callable[[PolicyLossInputs], LossOutput]] = {"gspo": gspo_loss, "grpo": grpo_loss}


def build_policy_loss(config: AlgorithmConfig) -> Callable[[Tensor, RolloutBatch], LossOutput]:
    """Returns the configured algorithm as (logprobs_T, batch) -> LossOutput; its metrics include the mismatch."""
    loss = POLICY_LOSSES[config.name]
    clip_low, clip_high = config.clip

    def evaluate(logprobs_T: Tensor, batch: RolloutBatch) -> LossOutput:
        mask_T = batch.packed.loss_mask
        output = loss(
            PolicyLossInputs(
                logprobs_T=logprobs_T,
                old_logprobs_T=batch.old_logprobs_T,
                advantages_T=batch.advantages_T,
                mask_T=mask_T,
                cu_seqlens=batch.packed.cu_seqlens,
                clip_low=clip_low,
                clip_high=clip_high,
            )
        )
        # of the weights that sampled: later mini-batches have moved on from them
        trainer_T = logprobs_T if batch.old_logprobs_T is None else batch.old_logprobs_T
        fresh_T = mask_T if batch.fresh_T is None else batch.fresh_T
        mismatch = engine_mismatch(trainer_T, batch.rollout_logprobs_T, fresh_T)
        return replace(output, metrics=output.metrics | mismatch)

    return evaluate


def engine_mismatch(
    logprobs_T: Tensor, rollout_logprobs_T: Tensor, mask_T: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Compares the trainer's logprobs with the engine's: sums over the response tokens, and their count.

    The sums are |difference| and the k3 estimate of KL(engine || trainer).
    """
    difference_T = torch.where(mask_T != 0, logprobs_T.detach() - rollout_logprobs_T, 0.0)
    count = (mask_T != 0).sum()
    return {"mismatch": (difference_T.abs().sum(), count), "mismatch_kl": (_k3(difference_T).sum(), count)}


def _clipped(ratio: Tensor, advantages: Tensor, inputs: PolicyLossInputs) -> tuple[Tensor, Tensor]:
    """Returns -min(ratio A, clip(ratio) A), and 1.0 where the clip took effect."""
    free = -ratio * advantages
    bounded = -ratio.clamp(1 - inputs.clip_low, 1 + inputs.clip_high) * advantages
    return torch.maximum(free, bounded), (bounded > free).float()


def _k3(log_ratio: Tensor) -> Tensor:
    """Returns Schulman's estimate of KL(old || new), never negative; log_ratio = log(new / old), sampled from old."""
    log_ratio = log_ratio.clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO)
    return log_ratio.expm1() - log_ratio
