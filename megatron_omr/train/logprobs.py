"""Computes per-token logprobs from logits: reduced over tensor parallelism, gathered over context parallelism.

Legend: T packed tokens, t this context-parallel rank's, v this tensor-parallel rank's part of the vocabulary.
Losses are plain functions of `logprobs_T` and need no process group: every context-parallel rank computes the
same loss, and its backward pass keeps the gradient of its own tokens only. Summing gradients over ranks is
then right as it is, but a *count* must be reported by one context-parallel rank only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr import cpu
from megatron_omr.parallel import Ranks, zigzag_order


def token_logprobs(
    logits: Tensor, batch: PackedBatch, ranks: Ranks, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns log p(labels[t]) of softmax(logits / temperature), and the entropy of that distribution.

    Args:
        logits: [t, 1, v], from the model's last stage, in its precision; not changed.

    Returns:
        logprobs_T and entropy_T, [T] float32 in the batch's order. The entropy has no gradient, and is zero
        unless `with_entropy`. The label at the end of a sequence is 0 and has no meaning: mask it.
    """
    order = zigzag_order(batch.cu_seqlens, ranks.cp_size)
    labels = batch.labels[order[ranks.cp_rank]]
    logprobs, entropy = _VocabParallelLogprobs.apply(
        logits.squeeze(1), labels, temperature, with_entropy, ranks.tp_group() if ranks.tp_size > 1 else None
    )
    if ranks.cp_size == 1:
        return logprobs, entropy
    return gather_zigzag(logprobs, order, ranks), gather_zigzag(entropy, order, ranks)


def gather_zigzag(x: Tensor, order: Tensor, ranks: Ranks) -> Tensor:
    """Gathers [t, ...] of each context-parallel rank to [T, ...] in the batch's order, on all of them.

    The gradient is that of this rank's own tokens.
    """
    return _GatherZigzag.apply(x, order, ranks)


class _VocabParallelLogprobs(torch.autograd.Function):
    """Log-softmax over a vocabulary split between ranks.

    Walks over chunks of rows in both passes and keeps the logits as they are for the backward pass, which computes
    the probabilities again: beside the logits and their gradient, one chunk in float32 is all that it takes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,  # [t, v]
        labels: Tensor,  # [t]
        temperature: float,
        with_entropy: bool,
        group: dist.ProcessGroup | None,  # None: the vocabulary is whole
    ) -> tuple[Tensor, Tensor]:
        peak = _reduce(logits.amax(dim=-1).float() / temperature, dist.ReduceOp.MAX, group)
        first = 0 if group is None else dist.get_rank(group) * logits.size(-1)
        local = labels - first
        elsewhere = (local < 0) | (local >= logits.size(-1))
        local = local.masked_fill(elsewhere, 0)
        sums = logits.new_zeros(2 + with_entropy, len(labels), dtype=torch.float32)
        for rows in _chunk_rows(logits):
            shifted = _shift(logits[rows], temperature, peak[rows])
            sums[0, rows] = shifted.gather(1, local[rows, None]).squeeze(1)
            probs = shifted.exp() if with_entropy else shifted.exp_()
            sums[1, rows] = probs.sum(dim=-1)
            if with_entropy:
                sums[2, rows] = probs.mul_(shifted).sum(dim=-1)
        sums[0].masked_fill_(elsewhere, 0.0)
        picked, total, *weighted = _reduce(sums, dist.ReduceOp.SUM, group)
        log_total = total.log()
        # entropy = log Z - sum_v p_v x_v, with Z and x relative to the peak
        entropy = log_total - weighted[0] / total if with_entropy else torch.zeros_like(total)
        ctx.save_for_backward(logits, peak, total, local, elsewhere)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return picked - log_total, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, peak, total, local, elsewhere = ctx.saved_tensors
        grad = grad / ctx.temperature
        grad_logits = torch.empty_like(logits)
        for rows in _chunk_rows(logits):
            probs = _shift(logits[rows], ctx.temperature, peak[rows]).exp_().div_(total[rows, None])
            grad_rows = probs.mul_(-grad[rows, None])
            own = grad[rows].masked_fill(elsewhere[rows], 0.0)
            grad_logits[rows] = grad_rows.scatter_add_(1, local[rows, None], own[:, None])
        return grad_logits, None, None, None, None


def _chunk_rows(logits: Tensor) -> list[slice]:
    """Returns slices over the rows of [t, v], each of as many as fit a chunk in float32, at least one."""
    size = max(1, cpu.logits_chunk_bytes() // (4 * logits.size(-1)))
    return [slice(start, start + size) for start in range(0, logits.size(0), size)]


def _shift(logits: Tensor, temperature: float, peak: Tensor) -> Tensor:
    """Returns a float32 copy of logits / temperature, relative to each row's peak."""
    return logits.to(torch.float32, copy=True).div_(temperature).sub_(peak[:, None])


class _GatherZigzag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, ranks: Ranks) -> Tensor:
        ctx.save_for_backward(order[ranks.cp_rank])
        gathered = x.new_empty(ranks.cp_size, *x.shape)
        dist.all_gather(list(gathered.unbind(0)), x.contiguous(), group=ranks.cp_group())
        flat = gathered.flatten(0, 1)
        return torch.empty_like(flat).index_copy_(0, order.flatten(), flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (own,) = ctx.saved_tensors
        return grad[own], None, None


def _reduce(x: Tensor, op: Any, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(x, op=op, group=group)
    return x
