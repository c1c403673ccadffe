"""A run's folder keeps its resolved config; a run that resumes must not quietly become another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.files import write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAY_CHANGE = (
    "run",
    "steps",
    "processes",
    "trainers",
    "parallel",
    "pack_length",
    "share_prompts",
    "engine",
    "checkpoint",
    "log",
)
"""Fields that a resumed run may change: how long, in which layout, how often to save. All else decides the result."""


def save_config(config: DataclassInstance, run: Path, *, resumes: bool) -> None:
    """Write RUN/config.json.

    Raises:
        ValueError: the run resumes, and a field outside MAY_CHANGE differs from the one it began with.
    """
    path = run / "config.json"
    new = json.loads(json.dumps(asdict(config)))
    if resumes and path.exists():
        old = json.loads(path.read_text())
        # a field that the old config lacks is newer than the run
        changed = [name for name in new if name not in MAY_CHANGE and name in old and old[name] != new[name]]
        if changed:
            shown = "; ".join(f"{name} was {old[name]}, is {new[name]}" for name in changed)
            raise ValueError(
                f"{run} holds a run with other settings: {shown}. Set them back, or choose another run"
            )
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, new)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints under `folder`, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []
