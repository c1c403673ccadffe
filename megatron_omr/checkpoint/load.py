"""Loads a trainer from a checkpoint that any layout wrote, after every file of it was verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from data_pipeline.files import remove_leftovers
from megatron_omr.checkpoint.manifest import Manifest, check_files, read_manifest
from megatron_omr.checkpoint.metadata import read_metadata
from megatron_omr.checkpoint.shards import read_shards
from megatron_omr.checkpoint.state import OPTIMIZER, frozen_shards, optimizer_shards, weight_shards
from megatron_omr.parallel import union_of_ranks
from megatron_omr.train.run_folder import CHECKPOINT_NAME, checkpoint_name, list_checkpoints
from megatron_omr.train.trainer import Trainer, unwrap_chunks

R = TypeVar("R")


def load_newest(trainer: Trainer, run: Path) -> tuple[int, dict[str, Any], str]:
    """Fills the trainer from the run's newest checkpoint that can be loaded. Collective.

    First removes the parts of checkpoints and of the exported folder that a killed run left.

    Returns:
        Step and state, or 0 and {} when there is no checkpoint; a line about damaged ones, or "".

    Raises:
        ValueError: there are checkpoints, and none of them can be loaded.
    """
    if dist.get_rank() == 0:
        remove_leftovers(run / "checkpoints", CHECKPOINT_NAME)
        remove_leftovers(run, "hf")
    damaged: list[str] = []
    # all ranks try the same ones, also where a file system shows them different folders
    names = union_of_ranks({path.name for path in list_checkpoints(run / "checkpoints")})
    for checkpoint in (run / "checkpoints" / name for name in sorted(names, reverse=True)):
        try:
            step, state = load_checkpoint(trainer, checkpoint, must_be=checkpoint.name)
        except ValueError as error:
            damaged.append(str(error))
            continue
        line = f"the run continues from {checkpoint.name}: {'; '.join(damaged)}" if damaged else ""
        return step, state, line
    if damaged:
        raise ValueError("; ".join(damaged))
    return 0, {}, ""


def load_checkpoint(trainer: Trainer, checkpoint: Path, *, must_be: str = "") -> tuple[int, dict[str, Any]]:
    """Fills the trainer from `checkpoint`, whatever layout wrote it; returns (step, state). Collective.

    Args:
        must_be: the name that it was written under, if that matters.

    Raises:
        ValueError: a file is missing or damaged, or it is of another model; on all ranks the same.
    """
    keys = union_of_ranks({shard.key for shard in weight_shards(unwrap_chunks(trainer))})
    manifest = _on_all_ranks(lambda: _verify(checkpoint, must_be))
    _on_all_ranks(lambda: _read(trainer, checkpoint, manifest, keys))
    _gather_weights(trainer)
    for group in trainer.optimizer.param_groups:
        group["step"] = manifest.fields["optimizer_steps"]
    trainer.scheduler.num_steps = 0  # the saved number is added to it
    trainer.scheduler.load_state_dict(manifest.fields["scheduler"])
    return manifest.step, manifest.fields["state"]


def _on_all_ranks(call: Callable[[], R]) -> R:
    """Returns what `call` does on this rank; raises the same ValueError on all ranks if any of them does."""
    error, result = set(), None
    try:
        result = call()
    except ValueError as raised:
        error = {str(raised)}
    if errors := union_of_ranks(error):
        raise ValueError(min(errors))
    return cast("R", result)


def _verify(checkpoint: Path, must_be: str) -> Manifest:
    manifest = read_manifest(checkpoint)
    if must_be and must_be != (name := checkpoint_name(manifest.step)):
        raise ValueError(f"{checkpoint} was written as {name}: rename it, or take another step-* folder")
    check_files(checkpoint, manifest, part=(dist.get_rank(), dist.get_world_size()))
    return manifest


def _read(trainer: Trainer, checkpoint: Path, manifest: Manifest, keys: set[str]) -> None:
    """Reads this rank's part of the optimizer's states, and the weights that the optimizer does not have.

    Args:
        keys: the weights of the whole model.
    """
    metadata = read_metadata(checkpoint)
    if others := {place.relative_path for place in metadata.storage_data.values()} - manifest.files.keys():
        raise ValueError(f"{checkpoint} has shards in {min(others)}, which its state.json does not list")
    weights = {key for key in metadata.state_dict_metadata if not key.startswith(OPTIMIZER)}
    if unknown := sorted(weights - keys):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(f"{checkpoint} is of another model, which has {unknown[0]}{more}")
    shards = [*optimizer_shards(trainer, with_copies=True), *frozen_shards(trainer)]
    read_shards(checkpoint, shards, metadata)


@torch.no_grad()
def _gather_weights(trainer: Trainer) -> None:
    """Casts the optimizer's fp32 weights to the model's, each rank its part, and gathers them as after a step."""
    for optimizer in trainer.optimizer.chained_optimizers:
        cast("Any", optimizer)._copy_main_params_to_model_params()
    for chunk in trainer.chunks:
        chunk.start_param_sync(force_sync=True)
