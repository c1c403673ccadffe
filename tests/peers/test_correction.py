"""Our corrections of what other weights sampled against verl's rollout_corr_helper: weights, metrics, denominators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from verl.trainer.ppo.rollout_corr_helper import (
    compute_rollout_correction_weights,
    compute_rollout_rejection_mask,
)

from rl.algorithms.correction import compute_correction, finish_metrics
from tests.helpers.peer_cases import CONFIGS, Case, pack_case, random_case, run_ours
from tests.peers.verl_losses import compute_weights, run_verl

CORRECTED = {name: config for name, config in CONFIGS.items() if config.is_decoupled}
each = pytest.mark.parametrize("config", CORRECTED.values(), ids=CORRECTED)


def correct(config, case: Case):
    """Returns our weights on the tokens of the loss [N], our metrics as means, and the ratios."""
    _, batch = pack_case(case, case.logprobs_BL)
    correction = compute_correction(
        config, batch.old_logprobs_T, batch.rollout_logprobs_T, batch.sampled_T, batch.packed.cu_seqlens
    )
    assert (correction.weight_T[batch.packed.loss_mask == 0] == 1).all()
    means = {name: float(total / count) for name, (total, count) in correction.metrics.items()}
    weights = correction.weight_T[batch.packed.loss_mask != 0]
    return weights, finish_metrics(means), correction.samples["correction_ratio"]


@each
@pytest.mark.parametrize("seed", range(5))
def test_weights_equal_verls(config, seed):
    case = random_case(seed)
    weights, metrics, _ = correct(config, case)
    theirs = compute_weights(config, case)[case.mask_BL != 0]
    torch.testing.assert_close(weights, theirs, rtol=1e-6, atol=0)
    share = "correction_rejected" if config.rejects else "correction_truncated"
    assert 0 < metrics[share] < 1


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_verls(seed):
    case, config = random_case(seed), CONFIGS["cispo_token_corrected"]
    _, metrics, ratios = correct(config, case)
    _, theirs = compute_rollout_correction_weights(
        case.old_logprobs_BL - case.rollout_logprobs_BL,
        case.mask_BL,
        rollout_is_threshold=config.correction_bounds[1],
    )
    assert metrics["correction_weight"] == pytest.approx(theirs["rollout_is_mean"], rel=1e-6)
    assert metrics["correction_truncated"] == pytest.approx(
        theirs["rollout_is_ratio_fraction_high"], rel=1e-6
    )
    assert metrics["correction_ess"] == pytest.approx(theirs["rollout_is_eff_sample_size"], rel=1e-6)
    assert min(float(ratios.max()), config.correction_bounds[1]) == pytest.approx(theirs["rollout_is_max"])


@pytest.mark.parametrize("kind", ["token_reject", "sequence_reject"])
@pytest.mark.parametrize("seed", range(3))
def test_verl_takes_rejected_tokens_out_of_the_denominators(kind, seed):
    """Ours stay: verl's gradient is larger by tokens over kept tokens, or by responses over kept responses."""
    bounds = (0.8, 1.3) if kind == "token_reject" else (0.9, 1.05)
    mean = "tokens" if kind == "token_reject" else "sequences"
    config = replace(
        CONFIGS["grpo"], loss_mean=mean, correction=kind, correction_low=bounds[0], correction_high=bounds[1]
    )
    case = random_case(seed)
    kept_BL, _ = compute_rollout_rejection_mask(
        case.old_logprobs_BL - case.rollout_logprobs_BL,
        case.mask_BL,
        rollout_rs={"token_reject": "token_k1", "sequence_reject": "seq_mean_k1"}[kind],
        rollout_rs_threshold=f"{1 / bounds[1]!r}_{1 / bounds[0]!r}",
    )
    theirs = run_verl(
        replace(config, correction="none", correction_low=None, correction_high=None),
        replace(case, mask_BL=kept_BL),
    )
    counts = [mask.sum() if mean == "tokens" else mask.any(1).sum() for mask in (case.mask_BL, kept_BL)]
    assert 0 < counts[1] < counts[0]
    share = float(counts[1] / counts[0])
    torch.testing.assert_close(
        run_ours(config, case).gradient_BL, theirs.gradient_BL * share, rtol=1e-6, atol=1e-12
    )
