"""The folder of a training run: its config, which a resumed run must keep, and its checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from data_pipeline.files import check_settings, read_json, to_json, write_json
from data_pipeline.shards.index import holds_shards

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class TrainingConfig(DataclassInstance, Protocol):
        """Config of a run that writes checkpoints."""

        @property
        def model(self) -> str: ...


MAY_CHANGE = (
    "run",
    "steps",
    "processes",
    "trainers",
    "parallel",
    "compute.backend",
    "compute.window_attention",
    "compute.recompute",
    "compute.recompute_vision",
    "compute.wgrad_fusion",
    "pack_length",
    "share_prompts",
    "engine",
    "checkpoint",
    "fault",
    "log",
    "max_bad_samples",
    "loader.max_bad_samples",
    "optim.max_bad_steps",
    "max_mismatch",
    "warn_mismatch",
    "rollout.placement",
    "validation",
    "held_out",
    "reward.max_errors",
    "reward.checker.workers",
    "reward.judge.base_url",
    "reward.judge.api_key_env",
    "reward.judge.concurrency",
    "reward.judge.requests_per_second",
    "reward.judge.timeout",
    "reward.judge.retries",
    "reward.judge.unavailable_timeout",
    "reward.judge.when_down",
)
"""Fields that a resumed run may change: length, layout, kernels, how often to save, where a judge is served and how it
is asked, limits past which a run stops, where engines run, and what is measured beside it.
All others decide the result."""

MAX_RUNS = 10
"""Runs of one after the other that list_train_shards follows; a model folder may name itself."""

CHECKPOINT_NAME = f"step-{'[0-9]' * 8}"
"""Pattern of the names of checkpoints; everything else beside them is the user's."""


CHECKPOINT_PER_WEIGHTS = 3
"""A checkpoint holds at least the weights and two moments of Adam: this many times the files of the model."""


def claim_run(config: TrainingConfig, run: Path) -> None:
    """Writes RUN/config.json, before the first step.

    Raises:
        OSError: the folder cannot be written, or has no room for one checkpoint.
        ValueError: the run resumes, and a field outside MAY_CHANGE differs from the one it began with.
    """
    save_config(config, run, resumes=bool(list_checkpoints(run / "checkpoints")))
    wanted = sum(file.stat().st_size for file in Path(config.model).glob("*.safetensors"))
    wanted *= CHECKPOINT_PER_WEIGHTS
    free = shutil.disk_usage(run).free
    if free < wanted:
        raise OSError(
            f"{run} has {free / 1e9:.3g} GB free, and a checkpoint takes at least {wanted / 1e9:.3g} GB; free space, "
            "or choose another folder with --run"
        )


def save_config(config: DataclassInstance, run: Path, *, resumes: bool) -> None:
    """Writes RUN/config.json.

    Fields that are newer than the run had their defaults when it began.

    Raises:
        ValueError: the run resumes, and a field outside MAY_CHANGE differs from the one it began with, or is gone.
    """
    path, new = run / "config.json", json.loads(to_json(asdict(config)))
    if resumes and path.exists():
        newer, old = _decisive(json.loads(to_json(_defaults(config)))), _decisive(read_json(path))
        if gone := sorted(old.keys() - _decisive(new).keys()):
            raise ValueError(
                f"{run} was begun by a version that had {', '.join(gone)}, which this one does not have; continue it "
                "with that version, or begin in another folder"
            )
        check_settings(run, newer | old, _decisive(new))
    write_json(path, new)


def list_decisive(config: DataclassInstance) -> dict[str, object]:
    """Returns the values of the fields outside MAY_CHANGE, by their names on the command line, as JSON holds them."""
    return _decisive(json.loads(to_json(asdict(config))))


def _defaults(config: DataclassInstance) -> dict[str, object]:
    """Returns the default of each field that has one, those of nested configs inside a dictionary."""
    values: dict[str, object] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            values[field.name] = _defaults(value)
        elif field.default_factory is not MISSING:
            values[field.name] = field.default_factory()
        elif field.default is not MISSING:
            values[field.name] = field.default
    return values


def _decisive(config: dict[str, object], section: str = "") -> dict[str, object]:
    """Returns the values of the fields outside MAY_CHANGE, by their names on the command line."""
    values: dict[str, object] = {}
    for name, value in config.items():
        field = f"{section}{name}"
        if field not in MAY_CHANGE:
            values |= _decisive(value, f"{field}.") if isinstance(value, dict) else {field: value}
    return values


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints under `folder`, oldest first; none where there is no folder."""
    return sorted(path for path in folder.glob(CHECKPOINT_NAME) if path.is_dir())


def list_train_shards(model: str | Path) -> list[str]:
    """Returns the places of the shards that the model folder `model`, a RUN/hf, was trained on, the last run's first.

    A run's config.json also names the model that it began with: those of the runs before follow. Places that no
    longer hold shards are left out.
    """
    places: dict[str, None] = {}  # in their order, each once
    for _ in range(MAX_RUNS):
        path = Path(model).parent / "config.json"
        config = read_json(path) if path.is_file() else {}
        if not isinstance(config, dict) or not {"run", "model"} <= config.keys():
            break
        loader = config.get("loader")
        place = config.get("shards") or (loader.get("shards") if isinstance(loader, dict) else None)
        if place and holds_shards(str(place)):
            places[str(place)] = None
        model = str(config["model"])
    return list(places)
