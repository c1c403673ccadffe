"""Finds the function of each part of a reward: those of this package by name, a user's in the file that it names."""

from __future__ import annotations

from functools import partial

from rl.rewards.config import RewardConfig, is_own, part_name
from rl.rewards.functions import accuracy, format, overlong
from rl.rewards.grounded import box_iou, grounded_format, point_in_box
from rl.rewards.inputs import RewardFunction
from rl.rewards.own import load_own


def load_functions(config: RewardConfig) -> dict[str, RewardFunction]:
    """Returns the functions by the names of their parts, in the order of `config.weights`.

    Raises:
        ValueError: a user's function is not there, or does not return a number.
    """
    functions: dict[str, RewardFunction] = {
        "accuracy": accuracy,
        "format": format,
        "overlong": partial(overlong, buffer=config.buffer),
        "point_in_box": point_in_box,
        "box_iou": box_iou,
        "grounded_format": grounded_format,
    }
    return {
        part_name(name): load_own(name) if is_own(name) else functions[name] for name, _ in config.weights
    }
