"""The reference solution as a member of its group: its form, its reward and the advantages, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rl.algorithms.advantage import TaskScale
from rl.algorithms.config import AlgorithmConfig, SolutionConfig
from rl.algorithms.solution import align_solution, build_solution, measure_advantage, measure_solutions
from rl.groups import assign_advantages, select_groups
from rl.types import Group, Reward, TrainRollout
from tests.helpers.groups import make_group, make_prompt, make_reward

WITH_SOLUTION = AlgorithmConfig(solution=SolutionConfig(enabled=True))


def with_solution(group: Group, *, reward: float = 0.9, accuracy: float = 1.0, smooth: bool = True) -> Group:
    solution = build_solution(
        [7, 8, 2], reward=reward, accuracy=accuracy, rewards=group.rewards, smooth=smooth
    )
    return replace(group, solution=solution)


def totals(*values: float) -> tuple[Reward, ...]:
    return tuple(replace(make_reward(value), total=value) for value in values)


def train_rollouts(group: Group, algorithm: AlgorithmConfig = WITH_SOLUTION) -> list[TrainRollout]:
    return assign_advantages(group, algorithm, TaskScale(0.99))


@pytest.mark.parametrize(
    ("text", "aligned"),
    [
        ("<think>a</think><answer>7</answer>", "<think>a</think><answer>7</answer>"),
        (
            " <think>\na b\n\nc </think>\n\n<answer> 7 </answer>\n",
            "<think>a b\n\nc</think><answer>7</answer>",
        ),
        ("<answer>\\boxed{7}</answer>", "<answer>\\boxed{7}</answer>"),
        ("It is 7.\n", "<answer>It is 7.</answer>"),
        ("<think>a</think>\n\nIt is 7.", "<think>a</think><answer>It is 7.</answer>"),
        ("a</think><answer>7</answer>", "<think>a</think><answer>7</answer>"),
        ("a, so <answer>7</answer>", "<think>a, so</think><answer>7</answer>"),
        ("<think>a</think><answer>7", "<think>a</think><answer>7</answer>"),
    ],
)
def test_solution_takes_the_form_of_rollouts(text: str, aligned: str) -> None:
    assert align_solution(text) == aligned
    assert align_solution(aligned) == aligned


def test_solution_that_no_rollout_reaches_has_the_largest_advantage() -> None:
    """All wrong: mean 0.18 of five, unbiased deviation 0.4024922."""
    group = replace(make_group(make_prompt(), [0] * 4), rewards=totals(0, 0, 0, 0))
    *rollouts, solution = train_rollouts(with_solution(group))
    assert [r.advantage for r in rollouts] == pytest.approx([-0.4472136] * 4, rel=1e-5)
    assert solution.advantage == pytest.approx(1.7888544, rel=1e-5)
    assert solution.logprobs is None and solution.token_ids.tolist() == [7, 8, 2]
    assert (solution.ref, solution.versions) == (rollouts[0].ref, ())


def test_solution_that_a_rollout_reaches_gets_their_mean_and_learns_nothing() -> None:
    group = replace(make_group(make_prompt(), [1, 0, 0, 0]), rewards=totals(1, 0, 0, 0))
    *rollouts, solution = train_rollouts(with_solution(group))
    assert [r.advantage for r in rollouts] == pytest.approx([1.7320508, *[-0.5773503] * 3], rel=1e-5)
    assert solution.advantage == 0
    *_, free = train_rollouts(with_solution(group, smooth=False))
    assert free.advantage == pytest.approx((0.9 - 0.38) / 0.5215362, rel=1e-5)
    equal = replace(group, rewards=totals(0.9, 0, 0, 0))  # at least as much
    assert with_solution(equal).solution.is_smoothed
    assert not with_solution(equal, reward=0.91).solution.is_smoothed


def test_smoothed_solution_is_exactly_zero_where_the_mean_is_not_exact() -> None:
    group = replace(make_group(make_prompt(), [1, 1, 0]), rewards=totals(1.0, 0.93, 0.1))
    for name in ("zscore", "mean", "leave_one_out", "task_scale"):
        assert train_rollouts(with_solution(group), replace(WITH_SOLUTION, advantage=name))[-1].advantage == 0


def test_wrong_group_has_a_signal_with_its_solution_and_a_right_one_has_none() -> None:
    wrong, right, mixed = (make_group(make_prompt(), values) for values in ([0, 0], [1, 1], [1, 0]))
    groups = [wrong, *map(with_solution, (wrong, right, mixed)), with_solution(right, accuracy=0)]
    assert select_groups(WITH_SOLUTION, groups) == [1, 3]
    one = make_group(make_prompt(), [0])
    solved = make_group(make_prompt(), [1])
    assert select_groups(WITH_SOLUTION, [one, with_solution(one), with_solution(solved)]) == [0, 1]


def test_metrics_are_of_the_groups_that_have_a_solution() -> None:
    wrong, right = (make_group(make_prompt(), values) for values in ([0, 0], [1, 0]))
    groups = [wrong, with_solution(wrong), with_solution(right)]
    found = measure_solutions(WITH_SOLUTION.solution, groups)
    assert (found["solutions_used"], found["solutions_missing"]) == (2, 1)
    assert found["solution_reward"] == pytest.approx((0.9 + 0.55) / 2)  # 0.55: mean of 1 and 0.1
    assert measure_solutions(SolutionConfig(), [wrong]) == {}
    rollouts = [train_rollouts(group) for group in groups]
    assert measure_advantage(rollouts) == {"solution_advantage": rollouts[1][-1].advantage / 2}
    assert measure_advantage(rollouts[:1]) == {}
