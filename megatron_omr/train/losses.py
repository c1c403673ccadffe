"""What a loss hands to the step: sums and counts, so that any split of a batch adds up to the same.

Knows torch, not Megatron: the policy losses import it, too.

Legend: T packed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.types import PackedBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOutput:
    """A micro-batch's share. The step divides loss_sum by the count of all micro-batches of all ranks."""

    loss_sum: Tensor  # scalar, carries the gradient
    count: Tensor  # scalar: what the loss is a mean of (tokens or sequences)
    metrics: dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count), detached


def masked_sum(values_T: Tensor, mask_T: Tensor) -> Tensor:
    """Sum of the values where the mask is not 0; what stands elsewhere (even inf or NaN) does not matter."""
    return torch.where(mask_T != 0, values_T, 0.0).sum()


def sft_loss(logprobs_T: Tensor, entropy_T: Tensor, batch: PackedBatch) -> LossOutput:
    """Cross entropy of the supervised tokens; the mean is over tokens of the whole global batch."""
    count = batch.loss_mask.sum()
    return LossOutput(
        loss_sum=-masked_sum(logprobs_T, batch.loss_mask),
        count=count,
        metrics={},
    )
