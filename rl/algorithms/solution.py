"""ViSurf (arXiv 2510.10606): the reference solution as a member of its group, with three controls of its reward (pure).

With G rollouts o_j and the solution y, advantages are those of the G + 1 rewards, and the loss is the algorithm's over
G + 1 responses. y is teacher-forced: its old logprobs are the trainer's, so that its ratio is 1 in the first update.

    r(y) = r_accuracy(y)                                    no reward for its form
    r(y) = mean_j r(o_j), A(y) = 0     where max_j r(o_j) >= r(y)

So a group that is all wrong learns the solution, as in SFT, and one that solves the question learns from itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.distill.teacher import build_target, parse_response
from rl.algorithms.config import SolutionConfig
from rl.types import Group, Reward, Solution, TrainRollout

_TAG = re.compile(r"</?(?:think|answer)>")


def align_solution(text: str) -> str:
    """Returns a solution in the form of the rollouts: thoughts and answer in tags, read as a teacher's response is.

    Without tags around the answer it is all that follows the thoughts.
    """
    thought, answer = parse_response(text)
    answer = answer or _TAG.sub("", text.rpartition("</think>")[2]).strip()
    return build_target(thought, answer) if thought else f"<answer>{answer}</answer>"


def build_solution(
    token_ids: Sequence[int] | NDArray[np.int32],
    *,
    reward: float,
    accuracy: float,
    rewards: Sequence[Reward],
    smooth: bool,
) -> Solution:
    """Returns the solution as the member of a group whose rollouts have `rewards`.

    Args:
        smooth: give it the rollouts' mean where one of them earns at least as much.
    """
    totals = [each.total for each in rewards]
    is_smoothed = smooth and max(totals) >= reward
    return Solution(
        token_ids=np.array(token_ids, np.int32),
        reward=float(np.mean(totals)) if is_smoothed else reward,
        accuracy=accuracy,
        is_smoothed=is_smoothed,
    )


def measure_solutions(config: SolutionConfig, groups: Sequence[Group]) -> dict[str, float]:
    """Returns metrics of the groups that are trained on: how many have a solution and have none, its mean reward."""
    if not config.enabled:
        return {}
    rewards = [group.solution.reward for group in groups if group.solution]
    counts: dict[str, float] = {
        "solutions_used": len(rewards),
        "solutions_missing": len(groups) - len(rewards),
    }
    return counts | ({"solution_reward": float(np.mean(rewards))} if rewards else {})


def measure_advantage(rollouts: Sequence[Sequence[TrainRollout]]) -> dict[str, float]:
    """Returns the mean advantage of the solutions in groups, as a metric; nothing where there is none."""
    advantages = [rollout.advantage for group in rollouts for rollout in group if rollout.logprobs is None]
    return {"solution_advantage": float(np.mean(advantages))} if advantages else {}
