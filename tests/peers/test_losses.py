"""Our losses equal verl's and TRL's on the same tensors: value, gradient and fraction of clipped tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rl.algorithms.config import AlgorithmConfig, KLConfig
from tests.helpers.peer_cases import CONFIGS, check_equal, evaluate_ours, random_case, run_ours
from tests.peers.trl_losses import knows, round_temperatures, run_trl
from tests.peers.verl_losses import run_verl

SEEDS = range(5)
OF_TRL = {name: round_temperatures(config) for name, config in CONFIGS.items() if knows(config)}
PUBLISHED = {name: AlgorithmConfig(name=name) for name in ("gspo", "gspo_token", "grpo", "dapo", "cispo")}


def each(configs: dict[str, AlgorithmConfig]):
    return pytest.mark.parametrize("config", configs.values(), ids=configs)


@each(CONFIGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_verl(config, seed):
    case = random_case(seed)
    check_equal(run_ours(config, case), run_verl(config, case))


@each(OF_TRL)
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_trl(config, seed):
    case = random_case(seed, empty=0).without_empty()
    check_equal(run_ours(config, case), run_trl(config, case))


@each(PUBLISHED)
def test_published_clips_take_effect_as_in_verl(config):
    fractions = []
    for seed in SEEDS:
        case = random_case(seed, spread=2e-3 if config.name.startswith("gspo") else 2.0)
        theirs = run_verl(config, case)
        check_equal(run_ours(config, case), theirs)
        fractions.append(theirs.clip_fraction)
    assert max(fractions) > 0


@pytest.mark.parametrize("largest", [5.0, 15.0, 50.0])
@each({name: config for name, config in CONFIGS.items() if not name.endswith("_k3")})
@pytest.mark.parametrize("seed", range(3))
def test_extreme_ratios_are_clamped_as_in_verl(config, seed, largest):
    case = random_case(seed, largest=largest)
    check_equal(run_ours(config, case), run_verl(config, case))


@each({name: config for name, config in OF_TRL.items() if not name.endswith("_k3")})
@pytest.mark.parametrize("seed", range(3))
def test_large_ratios_equal_trl_below_our_clamps(config, seed):
    case = random_case(seed, largest=9.0, empty=0).without_empty()
    check_equal(run_ours(config, case), run_trl(config, case))


@pytest.mark.parametrize("name", ["gspo_token", "grpo", "dapo", "dr_grpo", "cispo", "sapo"])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_advantage_for_each_token_equals_verl(name, seed):
    case = random_case(seed, by_token=True)
    check_equal(run_ours(CONFIGS[name], case), run_verl(CONFIGS[name], case))


@each(CONFIGS)
@pytest.mark.parametrize("seed", SEEDS)
def test_float32_equals_both_to_its_precision(config, seed):
    case = random_case(seed, dtype=torch.float32).without_empty()
    ours = run_ours(config, case)
    check_equal(ours, run_verl(config, case), rtol=1e-5)
    if knows(config):
        check_equal(ours, run_trl(config, case), rtol=1e-5)


@pytest.mark.parametrize("mean", ["sequences", "tokens", "constant"])
@pytest.mark.parametrize("name", ["gspo", "dapo", "cispo"])
def test_each_mean_equals_verl_with_each_loss(name, mean):
    config = replace(CONFIGS[name], loss_mean=mean, kl=KLConfig(coefficient=0.1))
    case = random_case(3)
    check_equal(run_ours(config, case), run_verl(config, case))


@each(CONFIGS)
@pytest.mark.parametrize("cuts", [(0, 1, 6), (0, 2, 3, 6)], ids=str)
def test_micro_batches_and_ranks_add_up_as_verls_do(config, cuts):
    """verl gets the sizes of the global batch and multiplies by the data-parallel ranks, which then average."""
    case, ranks = random_case(2), len(cuts) - 1
    sizes = {
        "batch_num_tokens": int(case.mask_BL.sum()),
        "global_batch_size": int(case.mask_BL.any(1).sum()),
        "dp_size": ranks,
    }
    whole, _ = evaluate_ours(config, case)
    for first, last in zip(cuts, cuts[1:], strict=False):
        part = case.part(first, last)
        output, logprobs_BL = evaluate_ours(config, part)
        (gradient_BL,) = torch.autograd.grad(output.loss_sum / whole.count, logprobs_BL)
        theirs = run_verl(config, part, **sizes)
        torch.testing.assert_close(gradient_BL, theirs.gradient_BL / ranks, rtol=1e-6, atol=1e-12)
