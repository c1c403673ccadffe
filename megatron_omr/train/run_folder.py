"""The folder of a training run: its config, which a resumed run must keep, and its checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.files import check_settings, read_json, to_json, write_json

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
    "max_bad_samples",
    "loader.max_bad_samples",
    "optim.max_bad_steps",
    "max_mismatch",
)
"""Fields that a resumed run may change: length, layout, how often to save, and limits past which a run stops.
All others decide the result."""

CHECKPOINT_NAME = f"step-{'[0-9]' * 8}"
"""Pattern of the names of checkpoints; everything else beside them is the user's."""


def save_config(config: DataclassInstance, run: Path, *, resumes: bool) -> None:
    """Writes RUN/config.json.

    Raises:
        ValueError: the run resumes, and a field outside MAY_CHANGE differs from the one it began with.
    """
    path, new = run / "config.json", json.loads(to_json(asdict(config)))
    if resumes and path.exists():
        check_settings(run, _decisive(read_json(path)), _decisive(new))
    write_json(path, new)


def _decisive(config: dict[str, object], section: str = "") -> dict[str, object]:
    """Returns the values of the fields outside MAY_CHANGE, by their names on the command line."""
    values: dict[str, object] = {}
    for name, value in config.items():
        field = f"{section}{name}"
        if field not in MAY_CHANGE:
            values |= _decisive(value, f"{field}.") if isinstance(value, dict) else {field: value}
    return values


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints under `folder`, oldest first; none where there is no folder."""
    return sorted(path for path in folder.glob(CHECKPOINT_NAME) if path.is_dir())
