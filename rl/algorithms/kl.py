"""Estimates of the KL divergence between two policies on sampled tokens (Schulman, joschu.net/blog/kl-approx.html).

With x = log(other / policy) of a token that the policy sampled, k1 = -x and k3 = e^x - 1 - x have the mean
KL(policy || other). As penalties they are used in different places, since a loss is differentiated:

- k3 in the loss: d k3 = (1 - e^x) d log policy, whose mean is the gradient of KL(reference || policy): both
  divergences pull towards the reference. (GRPO, arXiv 2402.03300, eq. 4; verl's low_var_kl; TRL)
- k1 in the loss would be d log policy, whose mean is zero. Taken off the advantages, it gives k1 d log policy, whose
  mean is the gradient of KL(policy || reference). (verl's use_kl_in_reward, there off the reward of each token)
"""

from __future__ import annotations

from torch import Tensor

MAX_TOKEN_LOG_RATIO = 20.0
"""Log-ratios of tokens are clamped to this on both sides, as in verl: their exponentials stay finite."""
MAX_PENALTY = 10.0
"""A token's k3 in the loss stops growing here, as in verl: one token the policy has all but lost is not the step."""


def k3(log_ratio: Tensor) -> Tensor:
    """Returns Schulman's estimate of KL(p || q), never negative; log_ratio = log(q / p), sampled from p."""
    log_ratio = log_ratio.clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO)
    return log_ratio.expm1() - log_ratio


def add_penalty(loss_T: Tensor, log_ratio_T: Tensor, coefficient: float) -> Tensor:
    """Returns loss_T + coefficient * k3; log_ratio_T = log(reference / policy), carries the gradient."""
    return loss_T + coefficient * k3(log_ratio_T).clamp(max=MAX_PENALTY)


def subtract_penalty(advantages_T: Tensor, log_ratio_T: Tensor, coefficient: float) -> Tensor:
    """Returns advantages_T - coefficient * k1, without a gradient; log_ratio_T = log(reference / policy)."""
    k1_T = -log_ratio_T.detach().clamp(-MAX_TOKEN_LOG_RATIO, MAX_TOKEN_LOG_RATIO)
    return advantages_T - coefficient * k1_T
