"""Losses as sums and counts, so that any split of a batch adds up to the same. Imports no Megatron.

Legend: T packed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_pipeline.types import PackedBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOutput:
    """The loss of a micro-batch. The step divides loss_sum by the count of all micro-batches of all ranks."""

    loss_sum: Tensor  # scalar, carries the gradient
    count: Tensor  # scalar: what the loss is a mean of (tokens or sequences)
    metrics: dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count), detached
    samples: dict[str, Tensor] = field(default_factory=dict)  # name -> values [n], detached, for quantiles


def masked_sum(values_T: Tensor, mask_T: Tensor) -> Tensor:
    """Returns the sum of the values where the mask is not 0; other values, even inf or NaN, are ignored."""
    return torch.where(mask_T != 0, values_T, 0.0).sum()


def sft_loss(logprobs_T: Tensor, entropy_T: Tensor, batch: PackedBatch) -> LossOutput:
    """Returns the cross entropy of the supervised tokens; the mean is over tokens of the whole global batch."""
    loss_sum = -masked_sum(logprobs_T, batch.loss_mask)
    return LossOutput(loss_sum=loss_sum, count=batch.loss_mask.sum(), metrics={})


def pack_mean_loss(logprobs_T: Tensor, entropy_T: Tensor, batch: PackedBatch) -> LossOutput:
    """Returns the mean cross entropy of the pack's supervised tokens; the mean is over packs.

    That is the released recipe's loss. A pack without supervised tokens counts for nothing.
    """
    tokens = sft_loss(logprobs_T, entropy_T, batch)
    has_any = (tokens.count > 0).to(tokens.count.dtype)
    return LossOutput(loss_sum=tokens.loss_sum / tokens.count.clamp(min=1), count=has_any, metrics={})


SFT_LOSSES = {"tokens": sft_loss, "packs": pack_mean_loss}
"""The losses that `loader.loss_mean` names."""
