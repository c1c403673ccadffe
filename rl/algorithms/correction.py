"""Corrects the loss for tokens that other weights than the trainer's sampled: weights of token losses (pure).

Three policies: mu sampled a token (an engine, with the weights of the token's version), pi_old are the trainer's
weights at the beginning of the step, pi the weights that learn. The loss compares pi with pi_old, so that its clip
bounds how far a step goes; the weight takes its mean from mu to pi_old (decoupled: arXiv 2110.00641; 2505.24298):

    rho_t = pi_old(y_t) / mu(y_t),   s = exp(mean_t log rho_t)
    token            w_t = min(rho_t, high)                  truncated importance sampling
    sequence         w_t = min(s, high)                      its geometric mean, as GSPO has it
    token_reject     w_t = 1 where low <= rho_t <= high, else 0
    sequence_reject  w_t = 1 where low <= s <= high, else 0
    loss             aggregate(w_t l_t)                      w without a gradient

A rejected token or response has a loss of 0 and stays in every denominator: in |y| of its response and n of
`sequences`, in the tokens of `tokens`, in n of `constant`. So what one token weighs does not depend on whether its
neighbours were rejected, and a step of which half is rejected has half the gradient. (verl takes rejected tokens out.)
Tokens of a reference solution, which no engine sampled, have the weight 1. A k3 penalty is not weighted, as in verl.

Legend: T packed tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_omr.train.losses import masked_sum
from rl.algorithms.aggregate import mean_by_response, mean_on_tokens
from rl.algorithms.config import AlgorithmConfig
from rl.algorithms.kl import MAX_TOKEN_LOG_RATIO

SQUARES = "correction_weight_squared"
"""The mean from which finish_metrics takes the effective sample size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """Weights of token losses, and what is logged of them."""

    weight_T: Tensor  # float32 at least, detached; 1 on tokens that no engine sampled
    metrics: dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count) over the sampled tokens
    samples: dict[str, Tensor]  # the ratios, before they were bounded: of tokens, or of responses


def compute_correction(
    config: AlgorithmConfig,
    old_logprobs_T: Tensor,
    rollout_logprobs_T: Tensor,
    sampled_T: Tensor,
    cu_seqlens: Tensor,
) -> Correction:
    """Returns the weights of `config.correction`, which is not none.

    Args:
        old_logprobs_T: the trainer's at the beginning of the step, for all tokens.
        rollout_logprobs_T: the engine's when it sampled them.
        sampled_T: not 0 on the tokens that an engine sampled; elsewhere anything may stand in the others.
    """
    is_sampled_T = sampled_T != 0
    gap_T = (old_logprobs_T.detach() - rollout_logprobs_T).to(
        torch.promote_types(torch.float32, old_logprobs_T.dtype)
    )
    log_ratio_T = torch.where(is_sampled_T, gap_T, 0.0)
    samples = log_ratio_T[is_sampled_T]
    if config.correction in ("sequence", "sequence_reject"):
        samples = mean_by_response(log_ratio_T, sampled_T, cu_seqlens)
        log_ratio_T = mean_on_tokens(log_ratio_T, sampled_T, cu_seqlens)
    log_ratio_T, samples = (
        x.clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO) for x in (log_ratio_T, samples)
    )
    low, high = config.correction_bounds
    if config.rejects:
        weight_T, is_bounded_T = reject(log_ratio_T, low, high)
    else:
        weight_T, is_bounded_T = truncate(log_ratio_T, high)
    share = "correction_rejected" if config.rejects else "correction_truncated"
    by_token = {"correction_weight": weight_T, SQUARES: weight_T.square(), share: is_bounded_T.float()}
    return Correction(
        weight_T=torch.where(is_sampled_T, weight_T, 1.0),
        metrics={name: (masked_sum(x_T, sampled_T), is_sampled_T.sum()) for name, x_T in by_token.items()},
        samples={"correction_ratio": samples.exp()},
    )


def truncate(log_ratio_T: Tensor, high: float) -> tuple[Tensor, Tensor]:
    """Returns min(ratio, high), and where it is less than the ratio."""
    ratio_T = log_ratio_T.exp()
    return ratio_T.clamp(max=high), ratio_T > high


def reject(log_ratio_T: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Returns 1 where low <= ratio <= high, else 0, and where it is 0."""
    is_kept_T = (log_ratio_T >= math.log(low)) & (log_ratio_T <= math.log(high))
    return is_kept_T.to(log_ratio_T.dtype), ~is_kept_T


def finish_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the global metrics of a step with the effective sample size of the weights instead of their squares.

    correction_ess = (sum w)^2 / (n sum w^2) = mean(w)^2 / mean(w^2), as a share of the n sampled tokens: 1 where all
    weigh the same, 0 where all are rejected.
    """
    metrics = dict(metrics)
    if (squares := metrics.pop(SQUARES, None)) is None:
        return metrics
    return metrics | {"correction_ess": metrics["correction_weight"] ** 2 / squares if squares else 0.0}
