"""Calls verl's losses (verl.trainer.ppo.core_algos) as its trainer does."""

from __future__ import annotations

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
from verl.trainer.ppo.rollout_corr_helper import (
    compute_rollout_correction_weights,
    compute_rollout_rejection_mask,
)
from verl.workers.config import ActorConfig

from rl.algorithms.config import AlgorithmConfig
from tests.helpers.peer_cases import MAX_TOKENS, Case, Result

LOSSES = {
    "gspo": "gspo",
    "gspo_token": "gspo",
    "grpo": "vanilla",
    "dapo": "vanilla",
    "dr_grpo": "vanilla",
    "cispo": "cispo",
    "sapo": "sapo",
}
MEANS = {
    "sequences": "seq-mean-token-mean",
    "tokens": "token-mean",
    "constant": "seq-mean-token-sum-norm",
}
UNBOUNDED = 1e30
KL_NAMES = {"k1": "k1", "k3": "low_var_kl"}


def build_actor(config: AlgorithmConfig, **global_batch_info: int) -> ActorConfig:
    """Returns our config as verl's, with the sizes of the global batch where the case is a part of it."""
    low, high = config.clip
    positive, negative = config.gate_temperatures
    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=config.dual_clip_ratio or UNBOUNDED,
        tau_pos=positive,
        tau_neg=negative,
        global_batch_info={"loss_scale_factor": MAX_TOKENS} | global_batch_info,
    )


def compute_weights(config: AlgorithmConfig, case: Case) -> Tensor:
    """Returns verl's weights [B, L]: those of its importance sampling, or its mask of what it does not reject.

    Its importance sampling of sequences takes the product of the ratios: here of their |y|-th roots, whose product is
    the geometric mean. Its rejection has bounds of mu / pi_old.
    """
    low, high = config.correction_bounds
    log_ratio_BL = case.old_logprobs_BL - case.rollout_logprobs_BL
    if config.rejects:
        rule = {"token_reject": "token_k1", "sequence_reject": "seq_mean_k1"}[config.correction]
        kept_BL, _ = compute_rollout_rejection_mask(
            log_ratio_BL, case.mask_BL, rollout_rs=rule, rollout_rs_threshold=f"{1 / high!r}_{1 / low!r}"
        )
        return kept_BL
    if config.correction == "sequence":
        log_ratio_BL = log_ratio_BL / case.mask_BL.sum(1, keepdim=True).clamp(min=1)
    weights_BL, _ = compute_rollout_correction_weights(
        log_ratio_BL, case.mask_BL, rollout_is=config.correction, rollout_is_threshold=high
    )
    return weights_BL


def run_verl(config: AlgorithmConfig, case: Case, **global_batch_info: int) -> Result:
    """Returns verl's loss, with its k3 penalty where the config has one, and its gradient."""
    actor = build_actor(config, **global_batch_info)
    mode = MEANS[config.mean_of_losses]
    logprobs_BL = case.logprobs_BL.clone().requires_grad_()
    loss, metrics = get_policy_loss_fn(LOSSES[config.name])(
        old_log_prob=case.old_logprobs_BL,
        log_prob=logprobs_BL,
        advantages=case.advantages_BL,
        response_mask=case.mask_BL,
        loss_agg_mode=mode,
        config=actor,
        rollout_is_weights=compute_weights(config, case) if config.is_decoupled else None,
    )
    if config.kl.coefficient:
        kl_BL = kl_penalty(logprobs_BL, case.reference_logprobs_BL, KL_NAMES[config.kl.estimator])
        loss = loss + config.kl.coefficient * agg_loss(kl_BL, case.mask_BL, mode, **actor.global_batch_info)
    (gradient_BL,) = torch.autograd.grad(loss, logprobs_BL)
    has_clip, has_dual_clip = (
        config.name != "sapo",
        LOSSES[config.name] == "vanilla" and config.dual_clip_ratio,
    )
    return Result(
        loss=float(loss.detach()),
        gradient_BL=gradient_BL,
        clip_fraction=metrics["actor/pg_clipfrac"] if has_clip else None,
        dual_clip_fraction=metrics["actor/pg_clipfrac_lower"] if has_dual_clip else None,
    )
