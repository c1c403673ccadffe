"""Random and extreme batches for policy losses, and losses of them as the trainer would compute them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr.train.losses import LossOutput
from rl.algorithms.config import DUAL_CLIPPED, AlgorithmConfig
from rl.algorithms.policy_loss import PolicyLossInputs, build_policy_loss
from rl.types import RolloutBatch

MAX_TOKENS = 9


def random_inputs(
    seed: int, *, empty: int = 1, num_sequences: int = 6, dtype: torch.dtype = torch.float64
) -> PolicyLossInputs:
    """Returns ragged random sequences, of which the first `empty` have no response token; clips take effect."""
    generator = torch.Generator().manual_seed(seed)
    lens = torch.randint(3, 12, (num_sequences,), generator=generator)
    total = int(lens.sum())
    old_T = -3 * torch.rand(total, generator=generator, dtype=torch.float64)
    noise_T = 0.3 * torch.randn(total, generator=generator, dtype=torch.float64)
    mask_T = (torch.rand(total, generator=generator) > 0.3).double()
    mask_T[: int(lens[:empty].sum())] = 0
    advantages_S = torch.randn(num_sequences, generator=generator, dtype=torch.float64)
    return PolicyLossInputs(
        logprobs_T=(old_T + noise_T).to(dtype).requires_grad_(),
        old_logprobs_T=old_T.to(dtype),
        advantages_T=(advantages_S.repeat_interleave(lens) * mask_T).to(dtype),
        mask_T=mask_T.to(dtype),
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.long), lens.cumsum(0)]).int(),
        clip_low=0.05,
        clip_high=0.08,
        dual_clip=1.3,
    )


def part(inputs: PolicyLossInputs, first: int, last: int) -> PolicyLossInputs:
    """Returns sequences first..last-1 as a batch of their own."""
    a, b = int(inputs.cu_seqlens[first]), int(inputs.cu_seqlens[last])
    old_T = inputs.old_logprobs_T
    return replace(
        inputs,
        logprobs_T=inputs.logprobs_T.detach()[a:b].clone().requires_grad_(),
        old_logprobs_T=None if old_T is None else old_T[a:b],
        advantages_T=inputs.advantages_T[a:b],
        mask_T=inputs.mask_T[a:b],
        cu_seqlens=inputs.cu_seqlens[first : last + 1] - a,
    )


def reference_logprobs(logprobs_T: Tensor) -> Tensor:
    """Returns logprobs of another policy, which depend on each token's own."""
    return logprobs_T.detach() + 0.5 * torch.sin(7 * logprobs_T.detach())


def rollout_batch(inputs: PolicyLossInputs) -> RolloutBatch:
    """Returns the inputs as the trainer's micro-batch; the engine's logprobs are 0.01 above the old ones."""
    ids_T = torch.zeros(inputs.logprobs_T.numel(), dtype=torch.long)
    old_T, now_T = inputs.old_logprobs_T, inputs.logprobs_T.detach()
    return RolloutBatch(
        packed=PackedBatch(
            ids=tuple(map(str, range(inputs.cu_seqlens.numel() - 1))),
            input_ids=ids_T,
            labels=ids_T,
            loss_mask=inputs.mask_T,
            position_ids=ids_T.expand(3, -1),
            cu_seqlens=inputs.cu_seqlens,
            real_lens=inputs.cu_seqlens.diff(),
            pixels=torch.zeros(0, 1),
            image_grid_thw=torch.zeros(0, 3),
        ),
        advantages_T=inputs.advantages_T,
        old_logprobs_T=old_T,
        rollout_logprobs_T=(now_T if old_T is None else old_T) + 0.01,
        reference_logprobs_T=reference_logprobs(inputs.logprobs_T),
    )


def configure(inputs: PolicyLossInputs, name: Any, **options: Any) -> AlgorithmConfig:
    """Returns the config of an algorithm with those clips of `inputs` that it has."""
    if name != "sapo":
        options = {"clip_low": inputs.clip_low, "clip_high": inputs.clip_high} | options
    if name in DUAL_CLIPPED:
        options = {"dual_clip": inputs.dual_clip} | options
    return AlgorithmConfig(name=name, **options)


def evaluate(inputs: PolicyLossInputs, name: Any, **options: Any) -> LossOutput:
    """Returns the loss of an algorithm as the trainer computes it."""
    loss = build_policy_loss(configure(inputs, name, **options), MAX_TOKENS)
    return loss(inputs.logprobs_T, rollout_batch(inputs))


def gradient(output: LossOutput, inputs: PolicyLossInputs) -> Tensor:
    """Returns the gradient of the mean loss with respect to the logprobs."""
    (gradient_T,) = torch.autograd.grad(output.loss_sum / output.count, inputs.logprobs_T)
    return gradient_T


def mean(pair: tuple[Tensor, Tensor]) -> float:
    """Returns a metric's mean."""
    return float(pair[0] / pair[1])
