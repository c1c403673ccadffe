"""Group advantages against verl's, and the group filter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rl.algorithms.advantage import compute_advantages, has_signal
from tests.helpers.groups import make_reward

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "advantage.json").read_text())


@pytest.mark.parametrize("group", GOLDEN["groups"], ids=lambda group: str(group["rewards"]))
def test_equals_verl(group):
    rewards_G = torch.tensor(group["rewards"], dtype=torch.float64)
    expected_G = torch.tensor(group["advantages"], dtype=torch.float64)
    torch.testing.assert_close(compute_advantages(rewards_G), expected_G, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("reward", [0.0, 0.1, 0.98, 1.0])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_give_exact_zeros(reward, size):
    # the mean of 0.98 is not 0.98 in float32: dividing that difference by the spread would give 0.05
    assert compute_advantages(torch.full((size,), reward)).tolist() == [0.0] * size


def test_single_response_keeps_its_reward_and_inputs_are_untouched():
    rewards_G = torch.tensor([0.7])
    compute_advantages(rewards_G).add_(1)
    assert rewards_G.tolist() == pytest.approx([0.7])


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ([(1, 1), (0, 1)], True),
        ([(1, 1), (1, 1)], False),
        ([(0, 1), (0, 0)], False),  # differs in format only
        ([(1, 1)], True),
    ],
)
def test_signal_is_in_the_accuracy(group, expected):
    assert has_signal([make_reward(*pair) for pair in group]) is expected
