"""Metrics of a step, and the warning when nothing was learned."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from rl.metrics import (
    SignalWatch,
    compute_metrics,
    estimate_pass,
    measure_groups,
    measure_lengths,
    measure_reflection,
)
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


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_mean_over_all_choices_of_k_responses(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        chosen = combinations([True] * c + [False] * (n - c), k)
        assert estimate_pass(n, c, k) == pytest.approx(np.mean([any(some) for some in chosen]))


def test_groups_are_counted_by_what_is_right() -> None:
    groups = [
        make_group(make_prompt(i), right) for i, right in enumerate([[1] * 5, [0] * 5, [1, 0, 0, 0, 0]])
    ]
    assert measure_groups(groups) == pytest.approx(
        {
            "pass_at_1": 6 / 15,
            "pass_at_2": (1 + 0 + 2 / 5) / 3,
            "pass_at_4": (1 + 0 + 4 / 5) / 3,
            "groups_all_right": 1,
            "groups_all_wrong": 1,
        }
    )


def test_lengths_of_right_and_wrong_responses_are_told_apart() -> None:
    groups = [make_group(make_prompt(0), [1, 0, 0, 1], lengths=[10, 20, 40, 30], finish_reason="length")]
    found = measure_lengths(groups)
    assert (found["response_len_right"], found["response_len_wrong"], found["truncated"]) == (20, 30, 1)
    assert (found["response_len_p50"], found["response_len_max"]) == (25, 40)
    assert 38 < found["response_len_p95"] < 39
    only_right = measure_lengths([make_group(make_prompt(0), [1, 1])])
    assert "response_len_wrong" not in only_right


def test_reflection_words_are_counted_in_any_case() -> None:
    found = measure_reflection(["Wait, let me check again.", "It is 5", "", "I verify it; then I re-check"])
    assert found == {"reflection_words": 4 / 14, "reflection_responses": 0.5}
    assert measure_reflection([""])["reflection_words"] == 0
