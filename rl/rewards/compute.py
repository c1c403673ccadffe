"""The reward of a response: the weighted sum of its parts, the values of named functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real

from rl.rewards.config import RewardConfig
from rl.rewards.inputs import RewardFunction, RewardInput
from rl.types import Reward


def compute_reward(
    given: RewardInput,
    functions: Mapping[str, RewardFunction],
    config: RewardConfig,
    report: Callable[[str, str], None],
) -> Reward:
    """Returns the reward of one response.

    Args:
        functions: by the names of their parts, as registry.load_functions returns them.
        report: is told the part and the error of a function that raised or gave no finite number: the part is 0.
    """
    parts, errors = dict[str, float](), list[str]()
    for name, function in functions.items():
        try:
            parts[name] = to_value(function(given))
        except (Exception, SystemExit) as error:  # also of a user's function
            parts[name] = 0.0
            errors.append(name)
            report(name, f"{type(error).__name__}: {error}")
    verdict = given.verdict
    if config.correct_by != "accuracy":
        verdict = replace(verdict, accuracy=parts[config.correct_by], decided_by=config.correct_by)
    return Reward(total=weigh(parts, config), verdict=verdict, parts=parts, errors=tuple(errors))


def weigh(parts: Mapping[str, float], config: RewardConfig) -> float:
    """Returns the weighted sum of parts."""
    return sum(weight * parts[name] for name, (_, weight) in zip(config.names, config.weights, strict=True))


def to_value(returned: object) -> float:
    """Returns a function's value as a float.

    Raises:
        ValueError: it is no number, NaN or infinite.
    """
    if not isinstance(returned, Real):
        raise ValueError(f"returned {type(returned).__name__} instead of a number")
    if not math.isfinite(returned):
        raise ValueError(f"returned {returned}, which is not finite")
    return float(returned)
