"""Corrections for what other weights sampled: values by hand, expectations over a small vocabulary, refused bounds.

tests/peers/test_correction.py compares the weights with verl's, test_peers.py losses with its numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl.algorithms.config import CORRECTION_BOUNDS, AlgorithmConfig
from rl.algorithms.correction import compute_correction, finish_metrics
from rl.algorithms.policy_loss import POLICY_LOSSES, build_policy_loss
from tests.helpers.losses import configure, random_inputs, rollout_batch

LOG_RATIOS = [0.0, math.log(4), math.log(0.25), math.log(1.5), math.nan, math.log(1.8), 0.0]
IS_SAMPLED = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
CU_SEQLENS = torch.tensor([0, 3, 5, 7])
"""Three responses, of which the second has one sampled token and the third too; the others are not sampled."""


def correct(kind, **bounds) -> tuple[list[float], dict[str, float], list[float]]:
    config = AlgorithmConfig(correction=kind, **bounds)
    ratios_T, sampled_T = torch.tensor(LOG_RATIOS, dtype=torch.float64), torch.tensor(IS_SAMPLED)
    found = compute_correction(config, ratios_T - 3, torch.full_like(ratios_T, -3), sampled_T, CU_SEQLENS)
    means = {name: float(total / count) for name, (total, count) in found.metrics.items()}
    return found.weight_T.tolist(), finish_metrics(means), sorted(found.samples["correction_ratio"].tolist())


def test_weights_by_hand() -> None:
    """A token that no engine sampled weighs 1 and counts in no mean."""
    weights, metrics, ratios = correct("token")
    assert weights == pytest.approx([1, 2, 0.25, 1.5, 1, 1.8, 1])
    assert ratios == pytest.approx([0.25, 1, 1.5, 1.8, 4])
    assert metrics["correction_weight"] == pytest.approx(6.55 / 5)
    assert metrics["correction_truncated"] == pytest.approx(1 / 5)
    squares = 1 + 4 + 0.0625 + 2.25 + 3.24
    assert metrics["correction_ess"] == pytest.approx(6.55**2 / (5 * squares))

    weights, metrics, ratios = correct("sequence", correction_high=1.6)
    assert weights == pytest.approx([1, 1, 1, 1.5, 1, 1.6, 1])
    assert (ratios, metrics["correction_truncated"]) == (pytest.approx([1, 1.5, 1.8]), pytest.approx(1 / 5))

    weights, metrics, _ = correct("token_reject", correction_high=2.0)
    assert weights == [1, 0, 0, 1, 1, 1, 1]
    assert metrics["correction_rejected"] == pytest.approx(2 / 5)
    assert metrics["correction_ess"] == pytest.approx(3 / 5)
    weights, _, _ = correct("sequence_reject", correction_high=1.6)
    assert weights == [1, 1, 1, 1, 1, 0, 1]


def test_all_rejected_has_no_effective_sample() -> None:
    assert finish_metrics({"correction_weight": 0.0, "correction_weight_squared": 0.0})["correction_ess"] == 0
    assert finish_metrics({"ratio": 1.0}) == {"ratio": 1.0}


def test_weighted_expectation_is_that_of_the_trainers_policy() -> None:
    """Summed over all tokens of a small vocabulary: E_mu[w l] = E_old[l] untruncated, and at most that with a bound."""
    generator = torch.Generator().manual_seed(0)
    mu_V, old_V = torch.randn(2, 50, generator=generator, dtype=torch.float64).softmax(-1)
    loss_V = torch.rand(50, generator=generator, dtype=torch.float64)

    def expect(kind, **bounds) -> float:
        config = AlgorithmConfig(correction=kind, **bounds)
        found = compute_correction(config, old_V.log(), mu_V.log(), torch.ones(50), torch.tensor([0, 50]))
        return float((mu_V * found.weight_T * loss_V).sum())

    exact = float((old_V * loss_V).sum())
    assert expect("token", correction_high=1e6) == pytest.approx(exact)
    assert abs(float((mu_V * loss_V).sum()) - exact) > 0.01 * exact
    assert expect("token") < exact
    kept_V = (old_V / mu_V >= 0.5) & (old_V / mu_V <= 5)
    assert not kept_V.all()
    assert expect("token_reject") == pytest.approx(float((mu_V * loss_V)[kept_V].sum()))


@pytest.mark.parametrize("algorithm", sorted(POLICY_LOSSES))
@pytest.mark.parametrize("kind", [kind for kind in CORRECTION_BOUNDS if kind != "none"])
def test_weights_multiply_the_loss_of_each_token_and_change_no_denominator(kind, algorithm) -> None:
    inputs = random_inputs(3)
    batch = with_rollouts(rollout_batch(inputs))
    config = replace(configure(inputs, algorithm), correction=kind, correction_high=1.1)
    if config.rejects:
        config = replace(config, correction_low=0.9)
    plain = replace(config, correction="none", correction_low=None, correction_high=None)
    outputs = [build_policy_loss(each, 9)(inputs.logprobs_T, batch) for each in (config, plain)]
    corrected_T, plain_T = (torch.autograd.grad(out.loss_sum, inputs.logprobs_T)[0] for out in outputs)
    weight_T = compute_correction(
        config, batch.old_logprobs_T, batch.rollout_logprobs_T, inputs.mask_T, inputs.cu_seqlens
    ).weight_T
    torch.testing.assert_close(corrected_T, plain_T * weight_T, rtol=1e-12, atol=1e-15)
    assert outputs[0].count == outputs[1].count
    assert ((weight_T != 1) & (inputs.mask_T != 0)).sum() > 0


def test_with_one_mini_batch_the_current_logprobs_are_the_old_ones() -> None:
    """So the ratio is 1 on all tokens, also stale ones, and the weight is that of the current logprobs."""
    inputs = random_inputs(4)
    batch = replace(with_rollouts(rollout_batch(inputs)), stale_T=inputs.mask_T != 0)
    batch = replace(batch, fresh_T=torch.zeros_like(inputs.mask_T))
    config = AlgorithmConfig(name="grpo", correction="token")
    loss = build_policy_loss(config, 9)
    alone = loss(inputs.logprobs_T, replace(batch, old_logprobs_T=None))
    given = loss(inputs.logprobs_T, batch.with_old_logprobs(inputs.logprobs_T.detach(), decoupled=True))
    assert alone.metrics["ratio"][0] == alone.metrics["ratio"][1] == inputs.mask_T.sum()
    assert alone.metrics == given.metrics and alone.loss_sum == given.loss_sum
    coupled = batch.with_old_logprobs(inputs.logprobs_T.detach())
    assert torch.equal(
        coupled.old_logprobs_T[inputs.mask_T != 0], batch.rollout_logprobs_T[inputs.mask_T != 0]
    )


def with_rollouts(batch):
    """Returns the batch with logprobs of an engine that differ from the old ones, some responses' as a whole."""
    places_T = torch.arange(batch.old_logprobs_T.numel())
    noise_T: Tensor = 0.3 * torch.sin(11 * places_T) + 0.3 * torch.sin(places_T / 5)
    return replace(batch, rollout_logprobs_T=batch.old_logprobs_T + noise_T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction_high": 2.0}, "correction_high=2.0 does nothing for correction=none"),
        (
            {"correction": "token", "correction_low": 0.5},
            "correction_low=0.5 does nothing for correction=token",
        ),
        ({"correction": "token", "correction_high": 1.0}, "bounds 0 to 1, which must be above 0 and on both"),
        ({"correction": "token_reject", "correction_low": 0.0}, "bounds 0 to 5"),
        ({"correction": "sequence_reject", "correction_low": 1.0}, "bounds 1 to 1.001"),
    ],
)
def test_bounds_that_do_nothing_or_leave_out_the_ratio_1_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        AlgorithmConfig(**options)
