"""Our advantages equal verl's and TRL's on the same rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer
from verl.trainer.ppo import core_algos

from rl.algorithms.advantage import STD_EPS, compute_advantages
from tests.peers.trl_losses import build_trainer

GROUPS, SIZE = 3, 4
TRL_EPS = 1e-4


def random_rewards(seed: int, size: int = SIZE) -> torch.Tensor:
    """Rewards of GROUPS groups, none of which agree: 0.9 of accuracy and 0.1 of format, and a penalty of length."""
    generator = torch.Generator().manual_seed(seed)
    accuracy, form, length = torch.rand(3, GROUPS, size, generator=generator, dtype=torch.float64)
    accuracy[:, 0], accuracy[:, -1] = 0.0, 1.0
    return 0.9 * accuracy.round() + 0.1 * form.round() - 0.3 * length


def ask_verl(function: str, rewards: torch.Tensor, **options) -> torch.Tensor:
    """Returns verl's advantages of groups [N, G]; it may change the rewards that it gets."""
    mask = torch.ones(rewards.numel(), 1, dtype=torch.float64)
    index = np.repeat(np.arange(len(rewards)), rewards.shape[1])
    advantages, _ = getattr(core_algos, function)(rewards.reshape(-1, 1).clone(), mask, index, **options)
    return advantages[:, 0].view_as(rewards)


def ask_trl(kind: type, rewards: torch.Tensor, scale: str = "group") -> torch.Tensor:
    """Returns TRL's advantages of groups [N, G]. Its responses are given, so that it only scores them."""
    count, size = rewards.shape
    trainer = build_trainer(kind, size)
    trainer.scale_rewards = scale
    trainer.reward_funcs = [lambda completions, **_: rewards.flatten().tolist()]
    rows = [{"prompt": "a"} for _ in range(count * size)]
    ids = [[3, 1]] * len(rows)
    texts = ["a"] * len(rows)
    given = {GRPOTrainer: (ids, ids, None, texts, None, {}, None, None), RLOOTrainer: (ids, ids, texts)}[kind]
    trainer._generate = lambda prompts: given
    return trainer._generate_and_score_completions(rows)["advantages"].view_as(rewards)


def ours(rewards: torch.Tensor, name: str) -> torch.Tensor:
    return torch.stack([compute_advantages(rewards_G, name) for rewards_G in rewards])


VERL = [
    ("zscore", "compute_grpo_outcome_advantage", {}),
    ("zscore", "compute_grpo_vectorized_outcome_advantage", {}),
    ("mean", "compute_grpo_outcome_advantage", {"norm_adv_by_std_in_grpo": False}),
    ("mean", "compute_grpo_vectorized_outcome_advantage", {"norm_adv_by_std_in_grpo": False}),
    ("leave_one_out", "compute_rloo_outcome_advantage", {}),
    ("leave_one_out", "compute_rloo_vectorized_outcome_advantage", {}),
]


@pytest.mark.parametrize("size", [2, 3, 4, 16])
@pytest.mark.parametrize(("name", "function", "options"), VERL, ids=lambda part: str(part))
@pytest.mark.parametrize("seed", range(3))
def test_equal_verls(name, function, options, size, seed):
    rewards = random_rewards(seed, size)
    torch.testing.assert_close(
        ours(rewards, name), ask_verl(function, rewards, **options), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_mean_and_leave_one_out_equal_trls_to_float32(size, seed):
    """TRL has rewards in float32."""
    rewards = random_rewards(seed, size)
    for name, theirs in {
        "mean": ask_trl(GRPOTrainer, rewards, scale="none"),
        "leave_one_out": ask_trl(RLOOTrainer, rewards),
    }.items():
        torch.testing.assert_close(ours(rewards, name).float(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_zscore_equals_trls_but_for_what_is_added_to_the_deviation(seed):
    """1e-4 in TRL, 1e-6 in verl and here: 1.4e-4 of the advantages of one right response of four."""
    rewards = random_rewards(seed)
    std = rewards.std(dim=1, keepdim=True)
    expected = ours(rewards, "zscore") * (std + STD_EPS) / (std + TRL_EPS)
    torch.testing.assert_close(expected.float(), ask_trl(GRPOTrainer, rewards), rtol=1e-5, atol=1e-6)


def test_equal_rewards_give_exact_zeros_here_and_rounding_in_verl():
    groups = [torch.full((1, size), reward) for size in range(2, 17) for reward in (0.1, 0.9, 0.98)]
    theirs = [ask_verl("compute_grpo_outcome_advantage", rewards).abs().max() for rewards in groups]
    assert 0.01 < max(theirs) < 1  # a mean that is not exactly the reward, in float32, over 1e-6
    assert not any(ours(rewards, "zscore").any() for rewards in groups)


def test_a_group_of_one_keeps_its_reward_as_in_verl_and_gets_zero_elsewhere():
    """In verl's zscore the deviation of one is 1, to which it adds its 1e-6."""
    rewards = torch.tensor([[0.7]], dtype=torch.float64)
    assert float(ask_verl("compute_grpo_outcome_advantage", rewards)) == pytest.approx(0.7 / (1 + STD_EPS))
    assert float(ask_verl("compute_rloo_outcome_advantage", rewards)) == 0.7
    assert float(ask_verl("compute_rloo_vectorized_outcome_advantage", rewards)) == 0.0
    assert [float(ours(rewards, name)) for name in ("zscore", "mean", "leave_one_out")] == [0.7] * 3
