"""Writes the metrics of each step to RUN/metrics.jsonl, the console and, if configured, TensorBoard and wandb."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.files import atomic_writer, to_json, without_nan
from megatron_omr.config import LogConfig


class MetricsLog:
    """Writes one JSON object a step and shows a progress bar. Open it on one rank only.

    A resumed run continues at `first_step`: lines of later steps, which a killed run left behind, are dropped.
    """

    def __init__(self, run: Path, log: LogConfig, *, steps: int, first_step: int, name: str) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(run / "metrics.jsonl", first_step=first_step)
        self._experts: JsonLines | None = None  # only models with experts have such lines
        self._open_experts = partial(JsonLines, run / "expert_load.jsonl", first_step=first_step)
        self._bar = tqdm(total=steps, initial=first_step, desc=name, unit="step", dynamic_ncols=True)
        self._every = log.every
        self._tensorboard = _open_tensorboard(run, first_step) if log.tensorboard else None
        self._wandb = _open_wandb(run, log.wandb, name) if log.wandb else None

    def write(
        self,
        step: int,
        values: dict[str, float],
        *,
        show: tuple[str, ...] = (),
        expert_load: list[list[int]] | None = None,
    ) -> None:
        """Records `values` of step `step` (counted from 0); `show` names those for the console.

        Args:
            expert_load: tokens of each expert of each layer, which go to expert_load.jsonl.
        """
        self._lines.write(step, values)
        if expert_load:
            self._experts = self._experts or self._open_experts()
            self._experts.write(step, {"load": expert_load})
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)
        if step % self._every == 0:
            self._bar.set_postfix_str(", ".join(f"{key} {values[key]:.4g}" for key in show if key in values))
        self._bar.update()

    def close(self) -> None:
        """Flushes and closes all outputs."""
        self._bar.close()
        self._lines.close()
        if self._experts is not None:
            self._experts.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class JsonLines:
    """A file of JSON objects, one a line, each with its step; resuming drops the lines of later steps."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        if path.exists():
            kept = [row for row in read_json_lines(path) if row["step"] < first_step]
            with atomic_writer(path) as file:
                file.writelines(to_json(without_nan(row)).encode() + b"\n" for row in kept)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds a line; NaN and infinity, which JSON does not have, become null."""
        self._file.write(to_json(without_nan({"step": step, **row})) + "\n")

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a .jsonl file, without a line that a kill cut short."""
    rows = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def _open_tensorboard(run: Path, first_step: int):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), purge_step=first_step)


def _open_wandb(run: Path, project: str, name: str):
    try:
        import wandb  # pyright: ignore[reportMissingImports] (optional)
    except ImportError as error:
        raise ValueError(f"log.wandb={project!r} needs the package wandb; run: pip install wandb") from error
    identity = run / "wandb_id"  # so that a resumed run continues its own page
    if not identity.exists():
        with atomic_writer(identity) as file:
            file.write(uuid.uuid4().hex.encode())
    return wandb.init(
        project=project,
        name=f"{run.parent.name}-{name}",
        dir=str(run),
        id=identity.read_text(),
        resume="allow",
    )
