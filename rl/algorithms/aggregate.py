"""Means of token losses, as sums and counts that add up over micro-batches and ranks.

Legend: T packed tokens, S sequences (responses, and those without a response token: prompts and padding).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_omr.train.losses import masked_sum
from rl.algorithms.config import LossMean


def aggregate(
    loss_T: Tensor, mask_T: Tensor, cu_seqlens: Tensor, *, mean: LossMean, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Returns the sum of token losses and the count that it is to be divided by, over all micro-batches and ranks.

    With loss l, |y| the response tokens of sequence i of n with any, and L = max_tokens:
    sequences  1/n sum_i 1/|y_i| sum_t l_it  (GRPO, arXiv 2402.03300; verl's seq-mean-token-mean)
    tokens     1/sum_i |y_i| sum_i sum_t l_it  (DAPO, arXiv 2503.14476; verl's token-mean)
    constant   1/n sum_i 1/L sum_t l_it  (Dr. GRPO, arXiv 2503.20783; TRL's dr_grpo)
    """
    if mean == "tokens":
        return masked_sum(loss_T, mask_T), (mask_T != 0).sum()
    len_S = count_tokens(mask_T, cu_seqlens)
    divisor_S = len_S.clamp(min=1) if mean == "sequences" else max_tokens
    sum_S = sum_by_sequence(torch.where(mask_T != 0, loss_T, 0.0), cu_seqlens)
    return (sum_S / divisor_S).sum().to(loss_T.dtype), (len_S > 0).sum()


def count_tokens(mask_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Returns the response tokens of each sequence, [S] float64."""
    return sum_by_sequence((mask_T != 0).double(), cu_seqlens)


def sum_by_sequence(values_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Returns the sum of each sequence, [S] float64: added up in float32, 30,000 equal values would be off by 3e-4."""
    return torch.segment_reduce(values_T.double(), "sum", lengths=cu_seqlens.diff().long(), unsafe=True)


def mean_on_tokens(values_T: Tensor, mask_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Returns on each token the mean over its sequence's response tokens, [T]; 0 where the sequence has none."""
    sum_S = sum_by_sequence(torch.where(mask_T != 0, values_T, 0.0), cu_seqlens)
    mean_S = sum_S / count_tokens(mask_T, cu_seqlens).clamp(min=1)
    lengths_S = cu_seqlens.diff().long()
    return mean_S.repeat_interleave(lengths_S, output_size=values_T.numel()).to(values_T.dtype)


def mean_by_response(values_T: Tensor, mask_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Returns the mean over response tokens of each sequence that has any, [n] float64."""
    len_S = count_tokens(mask_T, cu_seqlens)
    sum_S = sum_by_sequence(torch.where(mask_T != 0, values_T, 0.0), cu_seqlens)
    return sum_S[len_S > 0] / len_S[len_S > 0]
