"""Data recipes: which shards `omr data` writes."""

from __future__ import annotations

from collections.abc import Callable

from launch.config import DigitsConfig

DEMO_ROOT = "runs/demo"
"""Folder of the demo: its data, model, runs and evaluations."""


def digits(out: str = f"{DEMO_ROOT}/data", *, seed: int = 42) -> DigitsConfig:
    """The demo's corpus: arithmetic over scanned digits that scikit-learn ships."""
    return DigitsConfig(out=out, seed=seed)


DATA_RECIPES: dict[str, Callable[..., DigitsConfig]] = {"digits": digits}
