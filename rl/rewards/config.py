"""Config of rewards (standard library only)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from difflib import get_close_matches

from data_pipeline.config import check_at_least
from data_pipeline.served.config import JudgeConfig
from data_pipeline.verify.config import CheckerConfig

NAMES = ("accuracy", "format", "overlong", "point_in_box", "box_iou", "grounded_format")
"""Functions of registry.load_functions."""
TAKEN = ("errors", "timeouts")
"""Names whose metric, reward_NAME, is another one."""
OVERLONG_BUFFER = 4_096
"""Tokens, as in DAPO and OpenMMReasoner."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The reward of a response: the weighted sum of named functions of it."""

    weights: tuple[tuple[str, float], ...] = (("accuracy", 0.9), ("format", 0.1))
    """Functions and their weights; accuracy 0.9 format 0.1 are the recipe's. A function is accuracy, format, overlong,
    point_in_box, box_iou, grounded_format, or your own as FILE.py:FUNCTION; one of weight 0 is only logged."""
    correct_by: str = "accuracy"
    """Function whose value says how right a response is: groups in which it is equal carry no signal, and evaluation
    reports its mean. accuracy is the answer checker's; grounding goes by point_in_box or box_iou."""
    overlong_buffer: int | None = None
    """overlong: the last tokens before sampling.max_tokens, over which it falls from 0 to -1; 4096 by default."""
    checker: CheckerConfig = field(default_factory=CheckerConfig)
    use_judge: bool = False
    """Ask a served model about answers that the checker's rules find wrong; what it finds equivalent is right."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    max_errors: int | float = 100
    """Values that functions may fail to give: they raise, or return no finite number, which counts as 0. Past this
    many (50), or this share of the responses (0.05), the run stops."""

    def __post_init__(self) -> None:
        _check_weights(self.weights)
        check_at_least(self, "reward.", max_errors=0)
        if self.correct_by not in ("accuracy", *self.names):
            raise ValueError(
                f"reward.correct_by={self.correct_by} must be accuracy or a function of reward.weights: "
                f"{', '.join(self.names)}"
            )
        if self.correct_by != "accuracy" and ("accuracy" in self.names or self.use_judge):
            raise ValueError(
                f"reward.correct_by={self.correct_by} takes the place of the answer checker; leave accuracy out of "
                "reward.weights, and reward.use_judge off"
            )
        if self.overlong_buffer is not None and "overlong" not in self.names:
            raise ValueError(
                f"reward.overlong_buffer={self.overlong_buffer} is of overlong, which reward.weights does not hold; "
                "add it with a weight, or leave the buffer out"
            )
        if self.use_judge != bool(self.judge.base_url):
            raise ValueError(
                "reward.use_judge needs reward.judge.base_url, where a judge is served"
                if self.use_judge
                else f"reward.judge.base_url={self.judge.base_url} is not used without reward.use_judge; set it"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Returns what the parts of a reward are called: for FILE.py:FUNCTION it is FUNCTION."""
        return tuple(part_name(name) for name, _ in self.weights)

    @property
    def buffer(self) -> int:
        """Tokens over which overlong falls."""
        return OVERLONG_BUFFER if self.overlong_buffer is None else self.overlong_buffer

    def describe(self) -> str:
        """Returns the reward in a line, with what decides whether a response is right."""
        terms = " + ".join(f"{weight:g} {name}" for name, weight in self.weights)
        right = f"the {self.checker.mode} checker" if self.correct_by == "accuracy" else self.correct_by
        return f"reward: {terms}; right by {right}, {'then the judge' if self.use_judge else 'no judge'}"

    def check_limit(self, max_tokens: int) -> None:
        """Refuses a buffer of overlong that is no part of the `max_tokens` which a response may have."""
        if "overlong" in self.names and not 1 <= self.buffer < max_tokens:
            raise ValueError(
                f"reward.overlong_buffer={self.buffer} must be between 1 and {max_tokens - 1}, below "
                f"sampling.max_tokens={max_tokens}: overlong falls over the last tokens that a response may have"
            )


def is_own(name: str) -> bool:
    """Returns True for the name of a user's function, FILE.py:FUNCTION."""
    return ".py:" in name


def part_name(name: str) -> str:
    """Returns the name under which a function's values are logged."""
    return name.rpartition(":")[2] if is_own(name) else name


def _check_weights(weights: tuple[tuple[str, float], ...]) -> None:
    if not weights:
        raise ValueError("reward.weights is empty; give functions and weights: accuracy 0.9 format 0.1")
    for name, weight in weights:
        _check_name(name)
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"reward.weights: {name} has the weight {weight:g}, which must be 0 or more; a penalty is a function "
                "that returns negative values"
            )
    name, count = Counter(part_name(name) for name, _ in weights).most_common(1)[0]
    if count > 1:
        raise ValueError(f"reward.weights holds {name} {count} times; give each name once, it names a metric")
    if not any(weight for _, weight in weights):
        raise ValueError("reward.weights are all 0, so nothing is learned; give one a weight above 0")


def _check_name(name: str) -> None:
    if is_own(name):
        part = part_name(name)
        if not part.isidentifier() or part in TAKEN:
            raise ValueError(
                f"reward.weights: {name} must be FILE.py:FUNCTION with a function's name, and not {' or '.join(TAKEN)}"
            )
    elif name not in NAMES:
        near = get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"reward.weights: there is no function {name!r}; {hint}there are {', '.join(NAMES)}, and your own as "
            "FILE.py:FUNCTION"
        )
