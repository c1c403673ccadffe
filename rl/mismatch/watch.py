"""Follows the mismatch over the steps of a run: its trend, a warning, and the bound past which it stops (pure)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FAST, SLOW = 0.8, 0.98
"""Shares of the running means that a step keeps: means over about the last 5 and the last 50 steps."""
FEW = 8
"""With fewer fresh tokens than this a step has metrics, but neither warns nor stops, and leaves the trend as it is: the
mean of so few says nothing, and one token may be far off in low precision."""


class EnginesDisagree(RuntimeError):
    """Engine and trainer give different probabilities: the run stops before it trains on them."""

    def __init__(self, message: str, folder: Path) -> None:
        """Takes the folder with the evidence."""
        super().__init__(message)
        self.folder = folder


class MismatchWatch:
    """Sees the metrics of each step. Its state goes into checkpoints, so that a resumed run has the same trend."""

    def __init__(self, warn_at: float, stop_at: float, state: Mapping[str, Any] | None = None) -> None:
        """Goes on from `state`, what state_dict returned. The bounds are of mean |logprob difference|."""
        self._warn_at, self._stop_at = warn_at, stop_at
        state = state or {}
        self._means: dict[str, float] = dict(
            state.get("means", {"fast": 0.0, "slow": 0.0})
        )  # not yet corrected
        self._steps: int = state.get("steps", 0)
        self._has_warned: bool = state.get("has_warned", False)

    def add(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Counts the metrics of measure_mismatch; returns mismatch_trend, the fast running mean over the slow one.

        1 is no trend, 2 that the last steps are twice as far apart as the last fifty. Warns when the mean rises past
        warn_at, and again only once it has fallen below in between.
        """
        if metrics["mismatch_tokens"] < FEW or not metrics["mismatch_mean"] < float("inf"):
            return {}
        mean = metrics["mismatch_mean"]
        self._steps += 1
        corrected = {}
        for name, keep in (("fast", FAST), ("slow", SLOW)):
            self._means[name] = keep * self._means[name] + (1 - keep) * mean
            corrected[name] = self._means[name] / (1 - keep**self._steps)  # the means began at 0
        trend = corrected["fast"] / corrected["slow"] if corrected["slow"] else 1.0
        if mean > self._warn_at and not self._has_warned:
            log.warning(
                f"step {step}: engine and trainer drift apart: mean |logprob difference| {mean:.3g} (p99 "
                f"{metrics['mismatch_p99']:.3g}, trend {trend:.2f}), warn_mismatch={self._warn_at:g}; past "
                f"max_mismatch={self._stop_at:g} the run stops"
            )
        self._has_warned = mean > self._warn_at
        return {"mismatch_trend": trend}

    def is_too_far(self, metrics: Mapping[str, float]) -> bool:
        """Returns True where the run must stop; also for a mean that is not a number."""
        return metrics["mismatch_tokens"] >= FEW and not metrics["mismatch_mean"] <= self._stop_at

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep, as JSON holds it."""
        return {"means": self._means, "steps": self._steps, "has_warned": self._has_warned}
