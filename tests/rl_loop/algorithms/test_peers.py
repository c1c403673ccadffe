"""Losses and advantages against the numbers that verl and TRL gave; tests/peers asks them again (`make test-peers`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.algorithms.advantage import TaskScale, compute_advantages
from rl.algorithms.config import LossName
from rl.algorithms.policy_loss import POLICY_LOSSES
from rl.types import Group
from tests.helpers.groups import make_prompt, make_reward
from tests.helpers.peer_cases import CONFIGS, Case, Result, check_equal, read_golden, run_ours, to_json

GOLDEN = read_golden()
CASES = {
    name: Case(**{key: torch.tensor(rows, dtype=torch.float64) for key, rows in case.items()})
    for name, case in GOLDEN["cases"].items()
}


@pytest.mark.parametrize("entry", GOLDEN["losses"], ids=lambda e: f"{e['peer']}-{e['case']}-{e['config']}")
def test_loss_gradient_and_clip_fraction_equal_the_peers(entry):
    theirs = Result(
        loss=entry["loss"],
        gradient_BL=torch.tensor(entry["gradient_BL"], dtype=torch.float64),
        clip_fraction=entry["clip_fraction"],
        dual_clip_fraction=entry["dual_clip_fraction"],
    )
    check_equal(run_ours(CONFIGS[entry["config"]], CASES[entry["case"]]), theirs)


def test_numbers_are_of_these_configs_and_of_every_loss():
    assert GOLDEN["configs"] == {name: to_json(config) for name, config in CONFIGS.items()}
    asked: set[LossName] = {CONFIGS[entry["config"]].name for entry in GOLDEN["losses"]}
    assert asked == set(POLICY_LOSSES)
    assert {entry["peer"] for entry in GOLDEN["losses"]} == {"verl", "trl"}


def test_clips_take_effect_in_the_numbers():
    """So that a loss without its clip, or a case where none takes effect, does not pass."""
    clipped = {e["config"] for e in GOLDEN["losses"] if e["clip_fraction"]}
    without = {name for name, config in CONFIGS.items() if config.name == "sapo"}
    assert clipped == CONFIGS.keys() - without
    assert {e["config"] for e in GOLDEN["losses"] if e["dual_clip_fraction"]} >= {"grpo", "dapo", "dr_grpo"}


@pytest.mark.parametrize("name", GOLDEN["advantages"])
def test_advantages_equal_verls(name):
    rewards = torch.tensor(GOLDEN["rewards"], dtype=torch.float64)
    ours = torch.stack([compute_advantages(rewards_G, name.split()[0]) for rewards_G in rewards])
    expected = torch.tensor(GOLDEN["advantages"][name], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


def test_task_scale_equals_onethinkers():
    """Over six steps of two tasks; in the fifth one group is scaled by its own deviation."""
    golden = json.loads((Path(__file__).parents[2] / "golden" / "task_scale.json").read_text())
    scale = TaskScale(0.99)
    for step in golden["steps"]:
        prompts = [replace(make_prompt(), source=task) for task in step["tasks"]]
        groups = [
            Group(
                prompt=prompt,
                rollouts=(),
                rewards=tuple(replace(make_reward(1), total=total) for total in row),
            )
            for prompt, row in zip(prompts, step["rewards"], strict=True)
        ]
        scale.update(groups)
        for prompt, row, expected in zip(prompts, step["rewards"], step["advantages"], strict=True):
            rewards_G = torch.tensor(row, dtype=torch.float64)
            ours_G = compute_advantages(rewards_G, "task_scale", task_std=scale.std(prompt))
            torch.testing.assert_close(
                ours_G, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9
            )
