"""Metrics of a step, and the warning when nothing was learned."""

from __future__ import annotations

import pytest

from rl.metrics import SignalWatch, compute_metrics
from tests.helpers.groups import make_group, make_prompt, train_rollouts


def test_checkpoint_without_anything_new_says_why(caplog: pytest.LogCaptureFixture) -> None:
    equal = [make_group(make_prompt(i), [accuracy] * 3) for i, accuracy in enumerate([1, 0, 0])]
    mixed = make_group(make_prompt(3), [1, 0, 0])
    zeros = [train_rollouts(group) for group in equal]
    watch = SignalWatch()
    for groups, kept in ((equal, []), (equal, zeros), ([*equal, mixed], [train_rollouts(mixed)])):
        watch.add(groups, kept)
    watch.warn(3)
    assert caplog.messages == []
    watch.add(equal, zeros)
    watch.warn(4)
    (message,) = caplog.messages
    assert message.startswith(
        "step 4: nothing was learned since the last checkpoint: the responses to each of 3 "
    )
    assert "had equal accuracy (1 all right, 2 all wrong)" in message


def test_metrics_are_means_over_all_groups() -> None:
    groups = [make_group(make_prompt(0), [1, 1, 1]), make_group(make_prompt(1), [1, 0, 0])]
    metrics = compute_metrics(groups, {"seconds_generate": 2.0, "seconds_step": 3.0})
    assert metrics["reward_accuracy"] == pytest.approx(4 / 6)
    assert metrics["policy_version"] == 4
    assert (metrics["response_len_mean"], metrics["response_len_max"]) == (4, 5)
    assert metrics["tokens_per_second"] == 2 * (3 + 4 + 5) / 2.0
    assert metrics["seconds_step"] == 3.0
