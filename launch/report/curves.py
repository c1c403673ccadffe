"""Which metrics of a run are drawn, and what texts say of them: one list for a run's report, one for a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from types import MappingProxyType
from typing import NamedTuple

from launch.report.lines import Line, draw_lines
from launch.report.load import Metrics
from launch.report.page import Figure

VALIDATION_LOSS = "validation_loss"
HELD_OUT_PREFIX = "held_out/"
EXACT = (VALIDATION_LOSS, HELD_OUT_PREFIX)
"""Beginnings of metrics that are always of the same samples, so that their lines are not smoothed."""
NOT_PARTS = ("reward_timeouts", "reward_errors")
"""Beginnings of metrics that are no part of the reward: responses whose score failed."""


class Curve(NamedTuple):
    """A chart of metrics over steps."""

    name: str
    title: str
    caption: str
    metrics: Mapping[str, str]  # name of the line that a metric is drawn as
    ceiling: float | None = None
    log: bool = False
    less: float = 0.0  # is taken off each value
    hides_zeros: bool = False  # draws no line that is 0 throughout

    def points(self, metrics: Metrics, key: str) -> tuple[tuple[int, float], ...]:
        """Returns (step, value) where `key` was logged and is finite; nothing of a line that is hidden."""
        points = self._shift(metrics.points(key))
        return points if not self.hides_zeros or any(value for _, value in points) else ()

    def extremes(self, metrics: Metrics, key: str) -> tuple[tuple[int, float], ...]:
        """Returns the lowest and highest values behind the points, where these are means over several steps."""
        return self._shift(metrics.extremes.get(key, ()))

    def _shift(self, points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
        return tuple((step, value - self.less) for step, value in points)


REWARD = Curve("reward", "Reward", "Mean over the responses of a step.", {"reward": ""}, ceiling=1.0)
ACCURACY = Curve(
    "accuracy", "Accuracy", "Of sampled responses to training questions.", {"reward_accuracy": ""}, 1.0
)
HELD_OUT = Curve(
    "held-out",
    "Held-out accuracy",
    "While training; the band is its 95% interval.",
    {"held_out_accuracy": ""},
    ceiling=1.0,
)
BENCHMARKS = Curve(
    "benchmarks",
    "Held-out benchmarks",
    "While training; the number that tables print of each.",
    {},  # what was logged, see benchmark_curve
    ceiling=1.0,
)
ENTROPY = Curve("entropy", "Entropy", "Of the policy, per token, in nats.", {"entropy": ""})
CLIP = Curve(
    "clip",
    "Clip fraction",
    "Share of tokens that the policy loss clipped.",
    {"clip_fraction": "both", "clip_fraction_low": "low", "clip_fraction_high": "high"},
)
RATIO = Curve(
    "ratio",
    "Sequence ratio",
    "The new policy over the one that sampled, per response, less 1: quantiles.",
    {"sequence_ratio_p01": "1%", "sequence_ratio_p50": "50%", "sequence_ratio_p99": "99%"},
    less=1.0,
)
MISMATCH = Curve(
    "mismatch",
    "Mismatch",
    "Absolute logprob difference per token between engine and trainer.",
    {"mismatch_mean": "mean", "mismatch_p50": "50%", "mismatch_p99": "99%", "mismatch_max": "max"},
    log=True,
)
MISMATCH_KL = Curve(
    "mismatch-kl",
    "KL of engine and trainer",
    "Per token, in nats, at the same weights: two estimates.",
    {"mismatch_k1": "k1", "mismatch_k3": "k3"},
)
MISMATCH_TREND = Curve(
    "mismatch-trend",
    "Trend of the mismatch",
    "Mean of the last steps over that of many: 1 is none.",
    {"mismatch_trend": ""},
)
STALENESS = Curve(
    "staleness",
    "Staleness",
    "Optimizer steps between the weights that sampled a token and those that learn from it.",
    {"staleness_mean": "mean", "staleness_max": "max"},
    hides_zeros=True,
)
LENGTH = Curve(
    "length",
    "Response length",
    "In tokens.",
    {"response_len_mean": "mean", "response_len_p95": "95%", "response_len_max": "max"},
)
OUTCOMES = Curve(
    "outcomes",
    "Length by outcome",
    "Mean length of right and of wrong responses, in tokens.",
    {"response_len_right": "right", "response_len_wrong": "wrong"},
)
TRUNCATED = Curve("truncated", "Truncated responses", "Cut off at the length limit.", {"truncated": ""})
GROUPS = Curve(
    "groups",
    "Groups with signal",
    "Kept for training, of those asked; all right and all wrong ones.",
    {
        "groups_total": "asked",
        "groups_kept": "kept",
        "groups_all_right": "right",
        "groups_all_wrong": "wrong",
    },
)
REFLECTION = Curve(
    "reflection",
    "Reflection words",
    "Their share of the words of responses.",
    {"reflection_words": ""},
    hides_zeros=True,
)
SOLUTIONS = Curve(
    "solutions",
    "Reference solutions",
    "Mean reward and advantage of those that are members of groups (ViSurf).",
    {"solution_reward": "reward", "solution_advantage": "advantage"},
)
FAILURES = Curve(
    "failures",
    "Failed scores",
    "Responses of a step that could not be scored.",
    {"reward_timeouts": "timeouts", "reward_errors": "errors", "judge_failures": "judge"},
    hides_zeros=True,
)
KL = Curve(
    "kl",
    "KL",
    "Per token, in nats: from the policy that sampled, and from the reference.",
    {"policy_kl": "update", "reference_kl": "reference"},
)
GRAD_NORM = Curve("grad-norm", "Gradient norm", "Before clipping.", {"grad_norm": ""}, log=True)
LOSS = Curve(
    "loss",
    "Loss",
    "Cross-entropy per response token, in nats; validation: of samples that are not trained on.",
    {"loss": "training", VALIDATION_LOSS: "validation"},
)


def learning_curves(metrics: Metrics) -> list[Curve]:
    """Returns what a report shows of the responses: reward with its parts, accuracy on other questions, lengths."""
    logged = metrics.logged
    parts = [key for key in logged if key.startswith("reward_") and not key.startswith(NOT_PARTS)]
    reward = {"reward": "reward"} | {key: key.removeprefix("reward_") for key in parts}
    caption = f"{REWARD.caption[:-1]}, and its parts."
    return [
        REWARD._replace(caption=caption, metrics=reward),
        HELD_OUT,
        benchmark_curve(logged),
        pass_curve(logged),
        LENGTH,
        OUTCOMES,
        TRUNCATED,
        GROUPS,
        REFLECTION,
    ]


UPDATES = (
    *(ENTROPY, CLIP, RATIO, KL, SOLUTIONS, STALENESS),
    *(MISMATCH, MISMATCH_KL, MISMATCH_TREND, GRAD_NORM, FAILURES),
)
"""Curves of the policy and its updates, for reports."""


def pass_curve(logged: list[str]) -> Curve:
    """Returns the chart of pass@k, of every k that was logged."""
    keys = [key for key in logged if key.startswith("pass_at_")]
    names = {key: f"k = {key.removeprefix('pass_at_')}" for key in keys}
    return Curve("pass", "Pass@k", "Questions with a right one among k responses.", names, ceiling=1.0)


def benchmark_curve(logged: list[str]) -> Curve:
    """Returns the chart of the held-out benchmarks: of each the number that was logged first."""
    first: dict[str, str] = {}
    for key in logged:
        if key.startswith(HELD_OUT_PREFIX):
            _, name, number = key.split("/", 2)
            first.setdefault(name, number)
    names = {f"{HELD_OUT_PREFIX}{name}/{number}": f"{name} {number}" for name, number in first.items()}
    return BENCHMARKS._replace(metrics=names)


def draw_curve(
    curve: Curve, metrics: Metrics | None, prefix: str, limits: Mapping[str, float] = MappingProxyType({})
) -> Figure | None:
    """Returns a run's chart of these metrics; None when none was logged.

    Args:
        limits: values at which something happens, by what that is; drawn as lines.
    """
    if metrics is None:
        return None
    lines = [
        Line(
            name=name,
            points=curve.points(metrics, key),
            raw=curve.extremes(metrics, key),
            band=_interval(metrics) if curve is HELD_OUT else (),
            is_exact=key.startswith(EXACT),
        )
        for key, name in curve.metrics.items()
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    lost = sum(key in row and not isfinite(row[key]) for _, row in metrics.rows for key in curve.metrics)
    caption = curve.caption + (f" Not drawn: {lost} values that are not finite." if lost else "")
    chart = draw_lines(f"{curve.title} by step", lines, ceiling=curve.ceiling, log=curve.log, limits=limits)
    return Figure(f"{prefix}-{curve.name}", curve.title, caption, chart)


def _interval(metrics: Metrics) -> tuple[tuple[int, float, float], ...]:
    """Returns (step, low, high) of the held-out accuracy."""
    high = dict(metrics.points("held_out_high"))
    return tuple((step, low, high[step]) for step, low in metrics.points("held_out_low") if step in high)
