"""Megatron's distributed checkpoints: atomic, the newest N kept, loadable in any layout.

FOLDER/step-00000100/    Megatron's shards of weights, optimizer, schedule and RNG
    state.json           step, and what the caller wants back (loader position, counters, ...)
    hf/                  config, tokenizer and processor files: with them the checkpoint stands alone
A checkpoint is written under a hidden name and renamed when all of it is on disk: what bears its final
name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megatron_omr.convert.hf_folder import copy_template
from megatron_omr.parallel import Ranks
from megatron_omr.train.run_folder import checkpoints
from megatron_omr.train.trainer import Trainer, bare_chunks

# optimizer states are saved in the shape of the parameters, so that any layout can load them
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}


def save_checkpoint(
    trainer: Trainer, folder: Path, *, step: int, state: dict[str, Any], template: str | Path, keep: int
) -> Path:
    """Save after `step` steps. Collective. `state` must be JSON; `template` is the model's Hugging Face folder."""
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(
        _sharded_state(trainer, is_loading=False, with_rng=True),
        str(partial),
        content_metadata=_METADATA,
        **_save_arguments(),
    )
    dist.barrier()
    if first:
        copy_template(template, partial / "hf")
        text = json.dumps({"step": step, "world_size": dist.get_world_size(), "state": state}, indent=2)
        _write_durably(partial / "state.json", text)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync_folder(folder)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def load_checkpoint(trainer: Trainer, checkpoint: Path) -> tuple[int, dict[str, Any]]:
    """Fill the trainer from `checkpoint`, whatever layout wrote it; returns (step, state). Collective.

    Raises:
        ValueError: the folder is not a complete checkpoint.
    """
    saved = read_state(checkpoint)
    with_rng = saved["world_size"] == dist.get_world_size()
    loaded: Any = dist_checkpointing.load(
        _sharded_state(trainer, is_loading=True, with_rng=with_rng), str(checkpoint)
    )
    for name, chunk in _named_chunks(trainer):
        chunk.load_state_dict(loaded[name], strict=False)  # TE keeps extra states a CPU run lacks
    with torch.no_grad():  # the optimizer copies into views of leaf parameters
        trainer.optimizer.load_state_dict(loaded["optimizer"])
    trainer.scheduler.load_state_dict(loaded["scheduler"])
    if with_rng:
        torch.set_rng_state(loaded["rng"]["torch"])
        get_cuda_rng_tracker().set_states(loaded["rng"]["tracker"])
    return saved["step"], saved["state"]


def save_weights(chunks: Sequence[torch.nn.Module], out: Path, template: str | Path) -> None:
    """A checkpoint of weights alone (the result of a conversion). Collective; written whole or not at all."""
    partial = out.with_name(f".{out.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    state = {"model": chunks[0].sharded_state_dict(metadata=_METADATA)}
    dist_checkpointing.save(state, str(partial), content_metadata=_METADATA, **_save_arguments())
    dist.barrier()
    if dist.get_rank() == 0:
        copy_template(template, partial / "hf")
        _write_durably(partial / "state.json", json.dumps({"step": 0, "world_size": 0, "state": {}}))
        shutil.rmtree(out, ignore_errors=True)
        os.replace(partial, out)
    dist.barrier()


def load_weights(chunks: Sequence[torch.nn.Module], checkpoint: Path) -> None:
    """Fill bare model chunks from a checkpoint's weights, whatever layout wrote it. Collective."""
    read_state(checkpoint)
    loaded: Any = dist_checkpointing.load(
        {"model": chunks[0].sharded_state_dict(metadata=_METADATA)}, str(checkpoint)
    )
    chunks[0].load_state_dict(loaded["model"], strict=False)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a complete checkpoint.

    Raises:
        ValueError: something is missing: torn by hand, or not a checkpoint at all.
    """
    for name in ("state.json", "metadata.json", "hf/config.json"):
        if not (checkpoint / name).is_file():
            raise ValueError(
                f"{checkpoint} has no {name}: not a complete checkpoint; take another step-* folder"
            )
    return json.loads((checkpoint / "state.json").read_text())


def _sharded_state(trainer: Trainer, *, is_loading: bool, with_rng: bool) -> dict[str, Any]:
    models = {name: chunk.sharded_state_dict(metadata=_METADATA) for name, chunk in _named_chunks(trainer)}
    state: dict[str, Any] = dict(models)
    state["optimizer"] = trainer.optimizer.sharded_state_dict(
        models["model"] if len(models) == 1 else models,
        is_loading=is_loading,
        metadata=_METADATA | {"dp_cp_group": trainer.ranks.dp_cp_group()},
    )
    state["scheduler"] = trainer.scheduler.state_dict()
    if with_rng:
        state["rng"] = _sharded_rng(trainer.ranks)
    return state


def _named_chunks(trainer: Trainer) -> list[tuple[str, torch.nn.Module]]:
    chunks = bare_chunks(trainer)
    return [("model", chunks[0])] if len(chunks) == 1 else [(f"model{i}", c) for i, c in enumerate(chunks)]


def _sharded_rng(ranks: Ranks) -> ShardedObject:
    states = {"torch": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    return ShardedObject("rng", states, (ranks.world_size,), (ranks.rank,), replica_id=0)


def _save_arguments() -> dict[str, Any]:
    """Megatron-Core 0.19 writes through another package by default; 0.16 to 0.18 know no such choice."""
    from inspect import signature

    return (
        {"async_strategy": "mcore"}
        if "async_strategy" in signature(dist_checkpointing.save).parameters
        else {}
    )


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
