"""KL penalties against the exact divergences of a small categorical policy, and where they enter the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl.algorithms.config import AlgorithmConfig, KLConfig
from rl.algorithms.kl import add_penalty, k3, subtract_penalty
from rl.algorithms.policy_loss import POLICY_LOSSES, PolicyLossInputs, build_policy_loss
from tests.helpers.losses import evaluate, gradient, random_inputs, reference_logprobs, rollout_batch

ALGORITHMS = sorted(POLICY_LOSSES)
ACTIONS = 5


def policies() -> tuple[Tensor, Tensor]:
    """Returns the parameters of a categorical policy, and the logprobs of its reference."""
    generator = torch.Generator().manual_seed(3)
    logits_A, reference_A = torch.randn(2, ACTIONS, generator=generator, dtype=torch.float64)
    return logits_A.requires_grad_(), reference_A.log_softmax(-1)


def divergence(p_A: Tensor, q_A: Tensor) -> Tensor:
    """Returns KL(p || q) of logprobs."""
    return (p_A.exp() * (p_A - q_A)).sum()


def expected_gradient(algorithm: str, kl: KLConfig) -> Tensor:
    """Returns the mean gradient over samples of the policy, exactly: each action is a response of one token."""
    logits_A, reference_A = policies()
    logprobs_A = logits_A.log_softmax(-1)
    inputs = PolicyLossInputs(
        logprobs_T=logprobs_A,
        old_logprobs_T=None,
        advantages_T=torch.zeros(ACTIONS, dtype=torch.float64),
        mask_T=torch.ones(ACTIONS, dtype=torch.float64),
        cu_seqlens=torch.arange(ACTIONS + 1).int(),
        clip_low=0.2,
        clip_high=0.2,
    )
    loss = build_policy_loss(AlgorithmConfig(name=algorithm, kl=kl), 1)
    batch = replace(rollout_batch(inputs), reference_logprobs_T=reference_A)
    output = loss(logprobs_A, batch)  # the mean over equally many of each action ...
    (by_action_A,) = torch.autograd.grad(output.loss_sum, logprobs_A, retain_graph=True)
    # ... which is weighted with how often the policy samples them
    (gradient_A,) = torch.autograd.grad(logprobs_A, logits_A, by_action_A * logprobs_A.exp().detach())
    return gradient_A


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_mean_gradient_of_k1_is_that_of_kl_from_policy_to_reference(algorithm):
    logits_A, reference_A = policies()
    (exact_A,) = torch.autograd.grad(divergence(logits_A.log_softmax(-1), reference_A), logits_A)
    seen_A = expected_gradient(algorithm, KLConfig(coefficient=0.3, estimator="k1"))
    torch.testing.assert_close(seen_A, 0.3 * exact_A, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_mean_gradient_of_k3_is_that_of_kl_from_reference_to_policy(algorithm):
    logits_A, reference_A = policies()
    (exact_A,) = torch.autograd.grad(divergence(reference_A, logits_A.log_softmax(-1)), logits_A)
    seen_A = expected_gradient(algorithm, KLConfig(coefficient=0.3, estimator="k3"))
    torch.testing.assert_close(seen_A, 0.3 * exact_A, rtol=1e-10, atol=1e-14)


def test_k1_in_the_loss_would_have_no_mean_gradient():
    logits_A, reference_A = policies()
    logprobs_A = logits_A.log_softmax(-1)
    k1_A = logprobs_A - reference_A
    (gradient_A,) = torch.autograd.grad((logprobs_A.exp().detach() * k1_A).sum(), logits_A)
    torch.testing.assert_close(gradient_A, torch.zeros_like(gradient_A), rtol=0, atol=1e-15)


def test_both_estimates_have_the_divergence_as_mean_and_k3_is_never_negative():
    logits_A, reference_A = policies()
    logprobs_A = logits_A.detach().log_softmax(-1)
    k3_A = k3(reference_A - logprobs_A)
    exact = float(divergence(logprobs_A, reference_A))
    assert float((logprobs_A.exp() * k3_A).sum()) == pytest.approx(exact, rel=1e-12)
    assert float((logprobs_A.exp() * (logprobs_A - reference_A)).sum()) == pytest.approx(exact, rel=1e-12)
    assert (k3_A >= 0).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("loss_mean", ["sequences", "tokens", "constant"])
def test_k3_is_averaged_as_the_loss_is(algorithm, loss_mean):
    """The penalised gradient is the plain one and the penalty's by itself, of advantages that are all 0."""
    inputs, kl = random_inputs(1), KLConfig(coefficient=0.2)
    nothing = replace(inputs, advantages_T=torch.zeros_like(inputs.advantages_T))
    both = gradient(evaluate(inputs, algorithm, loss_mean=loss_mean, kl=kl), inputs)
    plain = gradient(evaluate(inputs, algorithm, loss_mean=loss_mean), inputs)
    penalty = gradient(evaluate(nothing, algorithm, loss_mean=loss_mean, kl=kl), nothing)
    torch.testing.assert_close(both, plain + penalty)
    torch.testing.assert_close(
        penalty, gradient(evaluate(nothing, "grpo", loss_mean=loss_mean, kl=kl), nothing)
    )


def test_a_policy_that_equals_its_reference_pays_nothing():
    inputs = random_inputs(2)
    for estimator in ("k1", "k3"):
        kl = KLConfig(coefficient=0.2, estimator=estimator)
        loss = build_policy_loss(AlgorithmConfig(name="grpo", kl=kl), 9)
        batch = replace(rollout_batch(inputs), reference_logprobs_T=inputs.logprobs_T.detach())
        plain = build_policy_loss(AlgorithmConfig(name="grpo"), 9)(inputs.logprobs_T, batch)
        penalised = loss(inputs.logprobs_T, batch)
        assert gradient(penalised, inputs).equal(gradient(plain, inputs))
        assert float(penalised.metrics["reference_kl"][0]) == 0


def test_penalties_by_hand_and_their_bounds():
    away_T = torch.tensor([0.0, math.log(2), -math.log(2), 5.0, 1e4, -1e4], requires_grad=True)
    penalty_T = add_penalty(torch.zeros(6), away_T, 2.0)
    assert penalty_T.tolist() == pytest.approx(
        [0, 2 - 2 * math.log(2), -1 + 2 * math.log(2), 20, 20, 20], abs=1e-6
    )
    (slope_T,) = torch.autograd.grad(penalty_T.sum(), away_T)
    assert slope_T.tolist() == pytest.approx([0, 2, -1, 0, 0, 0], abs=1e-6)  # bounded as in verl
    kept_T = subtract_penalty(torch.ones(6), away_T, 0.5)
    assert kept_T.tolist() == pytest.approx(
        [1, 1 + math.log(2) / 2, 1 - math.log(2) / 2, 3.5, 11, -9], abs=1e-6
    )
    assert not kept_T.requires_grad


def test_reference_logprobs_are_logged_as_a_divergence():
    inputs = random_inputs(3)
    output = evaluate(inputs, "grpo", kl=KLConfig(coefficient=1e-3, estimator="k1"))
    away_T = (reference_logprobs(inputs.logprobs_T) - inputs.logprobs_T.detach())[inputs.mask_T > 0]
    total, count = output.metrics["reference_kl"]
    assert float(total) == pytest.approx(float((away_T.exp() - 1 - away_T).sum()))
    assert count == away_T.numel()
