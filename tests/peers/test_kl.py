"""Our KL penalties equal verl's: k3 in the loss, k1 off the advantages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from verl.trainer.ppo.core_algos import compute_rewards, compute_rloo_outcome_advantage, kl_penalty

from rl.algorithms.advantage import leave_one_out
from rl.algorithms.config import KLConfig
from rl.algorithms.kl import add_penalty, subtract_penalty
from tests.helpers.peer_cases import CONFIGS, check_equal, random_case, run_ours
from tests.peers.verl_losses import run_verl


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 40.0])
def test_estimators_equal_verls(scale):
    """k1 within our clamp of 20, which verl has for k3 only."""
    generator = torch.Generator().manual_seed(0)
    logprobs, reference = scale * torch.randn(2, 200, generator=generator, dtype=torch.float64)
    away = reference - logprobs
    zeros = torch.zeros_like(away)
    torch.testing.assert_close(
        add_penalty(zeros, away, 1.0), kl_penalty(logprobs, reference, "low_var_kl"), rtol=1e-6, atol=1e-12
    )
    torch.testing.assert_close(
        -subtract_penalty(zeros, away, 1.0),
        kl_penalty(logprobs, reference, "k1").clamp(-20, 20),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("name", ["gspo_token", "dapo", "dr_grpo", "cispo", "sapo"])
@pytest.mark.parametrize("seed", range(3))
def test_k1_is_verls_estimate_off_each_tokens_advantage(name, seed):
    case, coefficient = random_case(seed), 0.1
    k1_BL = kl_penalty(case.logprobs_BL, case.reference_logprobs_BL, "k1")
    shifted = replace(case, advantages_BL=(case.advantages_BL - coefficient * k1_BL) * case.mask_BL)
    config = replace(CONFIGS[name], kl=KLConfig(coefficient=coefficient, estimator="k1"))
    check_equal(run_ours(config, case), run_verl(CONFIGS[name], shifted))


def test_verl_takes_k1_off_the_reward_of_the_response_before_the_group_is_compared():
    """So its outcome advantages hold the sum over the response, less the others' sums; ours hold each token's own."""
    case, coefficient = random_case(3, empty=0), 0.1
    scores_BL = torch.zeros_like(case.mask_BL)
    scores_BL[:, 0] = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    rewards_BL = compute_rewards(scores_BL, case.logprobs_BL, case.reference_logprobs_BL, coefficient)
    theirs_BL, _ = compute_rloo_outcome_advantage(
        rewards_BL, torch.ones_like(case.mask_BL), index=["one prompt"] * len(rewards_BL)
    )
    k1_BL = kl_penalty(case.logprobs_BL, case.reference_logprobs_BL, "k1")
    totals_B = scores_BL.sum(1) - coefficient * k1_BL.sum(1)
    torch.testing.assert_close(theirs_BL[:, 0], leave_one_out(totals_B), rtol=1e-6, atol=1e-12)
