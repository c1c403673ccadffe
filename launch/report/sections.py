"""Sections and cards that the report of a run and the live page have in common, from metrics and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.report.axes import format_seconds
from launch.report.charts import draw_stacked_bars
from launch.report.curves import (
    GRAD_NORM,
    LOSS,
    MISMATCH,
    UPDATES,
    Curve,
    draw_curve,
    learning_curves,
)
from launch.report.load import Metrics, RolloutGroup
from launch.report.page import Figure, Section, ShownImage, shorten

PHASES = ("generate", "reward", "train", "wait", "sync")
TOKENS = Curve(
    "tokens",
    "Tokens per second, SFT",
    "All tokens of the batches, without padding.",
    {"tokens_per_second": ""},
)
MFU = Curve("mfu", "MFU, SFT", "Share of the hardware's peak.", {"mfu": ""})
RL_TOKENS = TOKENS._replace(title="Tokens per second, RL", caption="Of responses, while engines generate.")

IDLE = Curve(
    "idle",
    "Engines without a prompt",
    "Seconds of each step, mean over engines.",
    {"seconds_engines_idle": ""},
)


def make_section(title: str, intro: str, figures: Sequence[Figure | None]) -> Section:
    """Returns the section with those figures that there are."""
    return Section(title, intro, [figure for figure in figures if figure])


def sft_section(metrics: Metrics | None) -> Section:
    """Returns the curves of SFT."""
    figures = [draw_curve(curve, metrics, "sft") for curve in (LOSS, GRAD_NORM)]
    return make_section("Supervised fine-tuning", note_smoothing(metrics), figures)


def rl_section(metrics: Metrics | None, more: Sequence[Curve] = ()) -> Section:
    """Returns the curves of the responses of RL, and `more` behind them."""
    curves = [*learning_curves(metrics), *more] if metrics else []
    figures = [draw_curve(curve, metrics, "rl") for curve in curves]
    return make_section("Reinforcement learning", note_smoothing(metrics), figures)


def updates_section(metrics: Metrics | None, mismatch_limits: Mapping[str, float] | None = None) -> Section:
    """Returns the curves of the updates of RL.

    Args:
        mismatch_limits: what happens at which mismatch; drawn as lines.
    """
    limits = {MISMATCH.name: mismatch_limits or {}}
    figures = [draw_curve(curve, metrics, "rl", limits.get(curve.name, {})) for curve in UPDATES]
    return make_section("Policy updates", "How the policy of reinforcement learning changes.", figures)


def draw_phases(metrics: Metrics | None) -> Figure | None:
    """Returns the seconds of each RL step by phase; what the phases do not explain is `other`."""
    rows = metrics.rows if metrics else ()
    phases = [phase for phase in PHASES if any(row.get(f"seconds_{phase}") for _, row in rows)]
    if not phases:
        return None
    bars = []
    for step, row in rows:
        parts = [max(0.0, row.get(f"seconds_{phase}", 0.0)) for phase in phases]
        bars.append((step, [*parts, max(0.0, row.get("seconds_step", 0.0) - sum(parts))]))
    names = [*phases, "other"]
    means = [sum(values[i] for _, values in bars) / len(bars) for i in range(len(names))]
    keys = [f"{name} {format_seconds(mean)}" for name, mean in zip(names, means, strict=True)]
    chart = draw_stacked_bars("Seconds of each RL step by phase", names, bars, "s")
    return Figure("rl-seconds", "Time of an RL step", "Seconds by phase; means:", chart, keys=keys)


def make_card(group: RolloutGroup, images: Sequence[ShownImage]) -> dict[str, object]:
    """Returns what the template shows of a group: the best and the worst response, and the others folded away."""
    responses = sorted(group.responses, key=lambda scored: -(scored.reward or 0.0))
    right = sum(scored.accuracy >= 0.5 for scored in responses)
    kind = shorten(responses[0].kind, 60).replace("_", " ")
    newest = group.newest_version if group.newest_version is not None else group.policy_version
    policy = f"policy {group.policy_version}" + (f" to {newest}" if newest != group.policy_version else "")
    facts = [kind, policy, f"{right} of {len(responses)} right"]
    return {
        "images": images,
        "question": group.question,
        "answer": responses[0].answer,
        "facts": [" · ".join(filter(None, facts)), group.ref.id],
        "shown": responses if len(responses) < 3 else [responses[0], responses[-1]],
        "others": responses[1:-1] if len(responses) > 2 else [],
    }


def note_smoothing(metrics: Metrics | None) -> str:
    """Returns which steps there are, and how their lines are drawn."""
    if metrics is None:
        return ""
    first, last = metrics.rows[0][0], metrics.rows[-1][0]
    return f"Steps {first} to {last}. Faint: each step; strong: moving average, ending in its last value."
