"""Where a peer computes something else than we do: each difference as an equation that holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rl.algorithms.config import KLConfig
from rl.algorithms.kl import MAX_PENALTY, k3
from tests.helpers.peer_cases import CONFIGS, Case, check_equal, random_case, run_ours
from tests.peers.trl_losses import run_trl
from tests.peers.verl_losses import run_verl


def one_token(log_ratio: float, advantage: float, log_reference: float = 0.0) -> Case:
    """One response of one token; `log_reference` is log(reference / policy)."""

    def cell(value: float) -> torch.Tensor:
        return torch.tensor([[value]], dtype=torch.float64)

    return Case(
        logprobs_BL=cell(-1.0),
        old_logprobs_BL=cell(-1.0 - log_ratio),
        reference_logprobs_BL=cell(-1.0 + log_reference),
        rollout_logprobs_BL=cell(-1.0 - log_ratio),
        advantages_BL=cell(advantage),
        mask_BL=cell(1.0),
    )


@pytest.mark.parametrize("name", ["gspo", "grpo", "dr_grpo", "sapo"])
def test_trl_divides_by_responses_without_tokens_too(name):
    """E.g. those that overlong masking empties; verl and we divide by the responses that have a token in the loss."""
    case = random_case(1, empty=2)
    with_tokens, all_of_them = int(case.mask_BL.any(1).sum()), len(case.mask_BL)
    assert with_tokens < all_of_them
    ours, theirs = run_ours(CONFIGS[name], case), run_trl(CONFIGS[name], case)
    share = with_tokens / all_of_them
    torch.testing.assert_close(ours.gradient_BL * share, theirs.gradient_BL, rtol=1e-6, atol=1e-15)
    assert ours.loss * share == pytest.approx(theirs.loss, rel=1e-6)
    check_equal(ours, run_verl(CONFIGS[name], case))


@pytest.mark.parametrize(
    ("name", "bound", "log_ratio"),
    [("gspo", 10.0, 12.0), ("grpo_without_dual_clip", 20.0, 25.0)],
)
def test_trl_clamps_no_log_ratio(name, bound, log_ratio):
    """verl and we clamp the log ratio, to 20 of a token and 10 of a sequence; beyond it there is no gradient."""
    case = one_token(log_ratio, advantage=-1.0)
    ours, theirs = run_ours(CONFIGS[name], case), run_trl(CONFIGS[name], case)
    largest = torch.tensor([log_ratio, bound], dtype=torch.float64).exp().tolist()
    assert [theirs.loss, ours.loss] == pytest.approx(largest)
    assert [float(theirs.gradient_BL), float(ours.gradient_BL)] == pytest.approx([largest[0], 0.0])
    check_equal(ours, run_verl(CONFIGS[name], case))


def test_trl_clamps_no_penalty():
    """verl and we stop k3 at 10 in the loss."""
    config = replace(CONFIGS["dapo"], kl=KLConfig(coefficient=1.0))
    case = one_token(0.0, advantage=0.0, log_reference=4.0)
    free = float(k3(torch.tensor(4.0, dtype=torch.float64)))
    assert free > MAX_PENALTY
    ours, theirs = run_ours(config, case), run_trl(config, case)
    assert [theirs.loss, ours.loss] == pytest.approx([free, MAX_PENALTY])
    check_equal(ours, run_verl(config, case))


@pytest.mark.parametrize("seed", range(3))
def test_trl_weights_the_penalty_by_the_ratio_unless_told_otherwise(seed):
    """Its default, from DeepSeek-V3.2: k3 times the ratio, whose gradient is that of KL(policy || reference)."""
    config, case = CONFIGS["dapo_k3"], random_case(seed).without_empty()
    ours, theirs = run_ours(config, case), run_trl(config, case, weighted_kl=True)
    ratio_BL = (case.logprobs_BL - case.old_logprobs_BL).exp()
    k3_BL = k3(case.reference_logprobs_BL - case.logprobs_BL)
    more = ((ratio_BL - 1) * k3_BL * case.mask_BL).sum() / case.mask_BL.sum()
    assert theirs.loss == pytest.approx(ours.loss + config.kl.coefficient * float(more), rel=1e-6)


def test_trls_cispo_has_no_lower_bound():
    """verl's has; ours has none at clip_low 1, the default, and verl's at any other."""
    config = replace(CONFIGS["cispo"], clip_low=0.2)
    case = one_token(-1.0, advantage=1.0)
    logprob, ratio = -1.0, float(torch.tensor(-1.0, dtype=torch.float64).exp())
    assert run_trl(config, case).loss == pytest.approx(-ratio * logprob)
    assert run_ours(config, case).loss == pytest.approx(-0.8 * logprob)
    check_equal(run_ours(config, case), run_verl(config, case))


def test_verls_sapo_averages_over_sequences_whatever_it_is_told():
    case = random_case(4)
    sequences, tokens = (replace(CONFIGS["sapo"], loss_mean=mean) for mean in ("sequences", "tokens"))
    assert run_verl(tokens, case).loss == run_verl(sequences, case).loss
    check_equal(run_ours(sequences, case), run_verl(tokens, case))
    assert run_ours(tokens, case).loss != pytest.approx(run_ours(sequences, case).loss)


def test_verls_gspo_is_gspo_token():
    """It lets each token have its advantage; our gspo takes their mean, as the paper's equation 5 has one."""
    case = random_case(5, by_token=True)
    check_equal(run_ours(CONFIGS["gspo_token"], case), run_verl(CONFIGS["gspo"], case))
    mean_B1 = case.advantages_BL.sum(1, keepdim=True) / case.mask_BL.sum(1, keepdim=True).clamp(min=1)
    averaged = replace(case, advantages_BL=mean_B1 * case.mask_BL)
    check_equal(run_ours(CONFIGS["gspo"], case), run_verl(CONFIGS["gspo"], averaged))
