"""Megatron's distributed checkpoints: atomic, the newest N kept, loadable in any layout.

FOLDER/step-00000100/    Megatron's shards of weights, optimizer, schedule and RNG
    state.json           step, and what the caller wants back (loader position, counters, ...)
    hf/                  config, tokenizer and processor files, so that nothing else is needed to convert it
A checkpoint is written under a hidden name and renamed when all of it is on disk: one with its final name
is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from queue import Queue
from shutil import disk_usage
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException

from data_pipeline.files import (
    atomic_folder,
    partial_folder,
    read_json,
    remove_folder,
    remove_leftovers,
    write_json,
)
from megatron_omr import cpu
from megatron_omr.convert.hf_folder import copy_template
from megatron_omr.parallel import Ranks, union_of_ranks
from megatron_omr.train.run_folder import CHECKPOINT_NAME, list_checkpoints
from megatron_omr.train.trainer import Trainer, unwrap_chunks
from megatron_omr.train.unpickling import check_pickles

# optimizer states are saved in the shape of the parameters, so that any layout can load them
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
_EXTRA_STATE = "_extra_state"
_FULL = 2**20
"""Bytes left on a disk where errors of torch's writer, which names no reason, are taken for a full disk."""

# The writer reports to this process, which waits for it. Megatron's own queue is in another process, which outlives
# a killed rank, costs 10 s of imports and, where it is forked, holds the rank's sockets: no peer would see it die.
filesystem_async._results_queue = Queue()


def save_checkpoint(
    trainer: Trainer, folder: Path, *, step: int, state: dict[str, Any], template: str | Path, keep: int
) -> Path:
    """Saves after `step` steps and removes all but the newest `keep`. Collective.

    Args:
        state: what the caller wants back on resuming, as JSON.
        template: the model's Hugging Face folder.
    """
    for part in trainer.optimizer.chained_optimizers:  # before the first step there is no state to save
        part.init_state_fn(part.optimizer, part.config)
    final = folder / f"step-{step:08d}"
    world_size = dist.get_world_size()
    saved = {"step": step, "world_size": world_size, "device": cpu.device(), "state": state}
    _write(final, _sharded_state(trainer, is_loading=False, with_rng=True), saved, template)
    if dist.get_rank() == 0:
        # later ones are damaged: they were passed over, or the run would have continued from them
        for old in [path for path in list_checkpoints(folder) if path <= final][:-keep]:
            remove_folder(old)
    dist.barrier()
    return final


def load_newest(trainer: Trainer, run: Path) -> tuple[int, dict[str, Any], str]:
    """Fills the trainer from the run's newest checkpoint that can be loaded. Collective.

    First removes the parts of checkpoints and of the exported folder that a killed run left.

    Returns:
        Step and state, or 0 and {} when there is no checkpoint; a line about damaged ones, or "".

    Raises:
        ValueError: there are checkpoints, and none of them can be loaded.
    """
    if dist.get_rank() == 0:  # which is the rank that writes
        remove_leftovers(run / "checkpoints", CHECKPOINT_NAME)
        remove_leftovers(run, "hf")
    damaged: list[str] = []
    for checkpoint in reversed(list_checkpoints(run / "checkpoints")):
        try:
            loaded, errors = load_checkpoint(trainer, checkpoint), set()
        except ValueError as error:
            loaded, errors = (0, {}), {str(error)}
        errors = union_of_ranks(errors)  # all ranks take the same one
        if not errors:
            line = f"the run continues from {checkpoint.name}: {'; '.join(damaged)}" if damaged else ""
            return loaded[0], loaded[1], line
        damaged.append(min(errors))
    if damaged:
        raise ValueError("; ".join(damaged))
    return 0, {}, ""


def load_checkpoint(trainer: Trainer, checkpoint: Path) -> tuple[int, dict[str, Any]]:
    """Fills the trainer from `checkpoint`, whatever layout wrote it; returns (step, state). Collective.

    Raises:
        ValueError: the folder is not a complete checkpoint of this model.
    """
    saved = read_state(checkpoint)
    # generators of CPU and CUDA have different states; nothing is drawn but from seeds, so any will do
    with_rng = (saved["world_size"], saved["device"]) == (dist.get_world_size(), cpu.device())
    loaded = _read(checkpoint, _sharded_state(trainer, is_loading=True, with_rng=with_rng))
    _fill(unwrap_chunks(trainer), loaded["model"])
    with torch.no_grad():  # the optimizer copies into views of leaf parameters
        trainer.optimizer.load_state_dict(loaded["optimizer"])
    trainer.scheduler.num_steps = 0  # the saved number is added to it
    trainer.scheduler.load_state_dict(loaded["scheduler"])
    if with_rng:
        torch.set_rng_state(loaded["rng"]["torch"])
        get_cuda_rng_tracker().set_states(loaded["rng"]["tracker"])
    return saved["step"], saved["state"]


def save_weights(chunks: Sequence[torch.nn.Module], out: Path, template: str | Path) -> None:
    """Writes a checkpoint of weights alone, which cannot resume a run. Collective."""
    weights = {"model": _sharded_weights(chunks)}
    _write(out, weights, {"step": 0, "world_size": 0, "device": cpu.device(), "state": {}}, template)
    dist.barrier()


def load_weights(chunks: Sequence[torch.nn.Module], checkpoint: Path) -> None:
    """Fills bare model chunks with a checkpoint's weights, whatever layout wrote it. Collective."""
    read_state(checkpoint)
    loaded = _read(checkpoint, {"model": _sharded_weights(chunks)})
    _fill(chunks, loaded["model"])


def _sharded_weights(chunks: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns each chunk's weights as Megatron writes and reads them, without the layers' extra states.

    The names in a checkpoint are those of the whole model, so that chunks of any number and size read it. Extra states
    are pickles of Transformer Engine, and only FP8 with delayed scaling, which is not offered, has anything in them.
    Without them a checkpoint is the same whichever backend, device or FP8 recipe wrote it.
    """
    states = [chunk.sharded_state_dict(metadata=_METADATA) for chunk in chunks]
    return [
        {name: value for name, value in state.items() if not name.endswith(_EXTRA_STATE)} for state in states
    ]


def _fill(chunks: Sequence[torch.nn.Module], weights: Sequence[dict[str, Any]]) -> None:
    for chunk, own in zip(chunks, weights, strict=True):
        missing, unknown = chunk.load_state_dict(own, strict=False)
        wrong = [name for name in missing if not name.endswith(_EXTRA_STATE)] + list(unknown)
        assert not wrong, f"the checkpoint lacks these of the model's names, or has others: {wrong}"


def _read(checkpoint: Path, sharded: dict[str, Any]) -> Any:
    try:
        check_pickles(checkpoint)
        return dist_checkpointing.load(sharded, checkpoint)  # pyright: ignore[reportArgumentType] (needs a Path)
    except (CheckpointException, CheckpointingException) as error:
        raise _damaged(checkpoint) from error


def _damaged(checkpoint: Path) -> ValueError:
    return ValueError(
        f"{checkpoint} cannot be loaded: a file is missing or damaged, or it is of another model; "
        "take another step-* folder"
    )


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Returns state.json of a checkpoint.

    Raises:
        ValueError: it is incomplete or damaged, or not a checkpoint.
    """
    for name in ("state.json", "metadata.json", "hf/config.json"):
        if not (checkpoint / name).is_file():
            raise ValueError(
                f"{checkpoint} has no {name}: not a complete checkpoint; take another step-* folder"
            )
    try:
        read_json(checkpoint / "metadata.json")
        with ZipFile(checkpoint / "common.pt") as common:
            if common.testzip() is None:
                state = read_json(checkpoint / "state.json")
                device = state.get("device", "cpu")  # those of before it was written are of CPUs
                return {name: state[name] for name in ("step", "world_size", "state")} | {"device": device}
    except (OSError, BadZipFile, ValueError, LookupError, TypeError) as error:
        raise _damaged(checkpoint) from error
    raise _damaged(checkpoint)


def _write(folder: Path, sharded: dict[str, Any], state: dict[str, Any], template: str | Path) -> None:
    is_first = dist.get_rank() == 0
    with atomic_folder(folder) if is_first else nullcontext(partial_folder(folder)) as partial:
        dist.barrier()
        try:
            dist_checkpointing.save(sharded, str(partial), content_metadata=_METADATA, **_save_arguments())
        except (CheckpointException, OSError, RuntimeError) as error:
            free = disk_usage(partial.parent).free
            if isinstance(error, RuntimeError) and free > _FULL:
                raise
            raise OSError(
                f"{folder} could not be written{_reason(error)}; {free / 1e9:.3g} GB are free there without it. Free "
                "space and run the same command again: it continues from the checkpoint before"
            ) from error
        dist.barrier()
        if is_first:
            copy_template(template, partial / "hf")
            write_json(partial / "state.json", state)


def _reason(error: BaseException) -> str:
    """Returns the last line of an error in brackets; nothing on the ranks that only hear that others failed."""
    *_, line = str(error).splitlines() or [""]
    return "" if line.startswith("CheckpointException") else f" ({line})"


def _sharded_state(trainer: Trainer, *, is_loading: bool, with_rng: bool) -> dict[str, Any]:
    model = {"model": _sharded_weights(unwrap_chunks(trainer))}
    metadata = _METADATA | {"dp_cp_group": trainer.ranks.dp_cp_group()}
    optimizer = trainer.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)
    state = model | {"optimizer": optimizer, "scheduler": trainer.scheduler.state_dict()}
    if with_rng:
        state["rng"] = _sharded_rng(trainer.ranks)
    return state


def _sharded_rng(ranks: Ranks) -> ShardedObject:
    states = {"torch": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    return ShardedObject("rng", states, (ranks.world_size,), (ranks.rank,), replica_id=0)


def _save_arguments() -> dict[str, Any]:
    """Selects Megatron's own writer: 0.19 has another default, 0.16 to 0.18 have no such option."""
    has_choice = "async_strategy" in signature(dist_checkpointing.save).parameters
    return {"async_strategy": "mcore"} if has_choice else {}
