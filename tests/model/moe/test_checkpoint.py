"""Checkpoints of models with experts: every layout loads what every other wrote, to the bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, random_micro_batches

pytestmark = [pytest.mark.heavy, pytest.mark.slow, pytest.mark.timeout(900)]

EP2 = ParallelConfig(ep=2)
LAYOUTS = [
    ParallelConfig(tp=2, sp=True),
    ParallelConfig(tp=2, sp=True, ep=2, etp=1),
    ParallelConfig(pp=2, layers=(2, 2)),
    EP2,
]


def test_every_layout_loads_every_other(tiny_moe_hf: Path, tmp_path: Path) -> None:
    run_ranks(_go_through, 2, str(tiny_moe_hf), str(tmp_path), timeout=600)
    run_ranks(_load, 1, str(tiny_moe_hf), str(tmp_path))


def _go_through(folder: str, out: str) -> None:
    """Trains and saves at EP2; then each layout loads what the one before wrote, and writes it again."""
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.parallel import shutdown
    from megatron_omr.train.step import train_step

    trainer = _build(folder, EP2, "start")
    for seed in (1, 2):
        train_step(trainer, random_micro_batches(trainer, EP2, seed=seed))
    save_checkpoint(trainer, Path(out, "0"), step=2, state={}, template=folder, keep=1)
    wanted = _read_whole(Path(out, "0"))
    shutdown()
    for number, layout in enumerate(LAYOUTS):
        trainer = _build(folder, layout, str(number))
        _check(trainer, Path(out, str(number)), wanted)
        save_checkpoint(trainer, Path(out, str(number + 1)), step=2, state={}, template=folder, keep=1)
        found = _read_whole(Path(out, str(number + 1)))
        assert found.keys() == wanted.keys()
        assert all(tensor.equal(wanted[key]) for key, tensor in found.items()), layout
        shutdown()


def _load(folder: str, out: str) -> None:
    trainer = _build(folder, ParallelConfig(), "one")
    _check(trainer, Path(out, str(len(LAYOUTS))), _read_whole(Path(out, "0")))


def _build(folder: str, parallel: ParallelConfig, world: str) -> Any:
    from megatron_omr.train.trainer import build_trainer

    return build_trainer(
        folder, parallel, init_ranks(parallel, world=world), OPTIM, precision="fp32", steps=8
    )


def _check(trainer: Any, run: Path, wanted: dict[str, Any]) -> None:
    """Loads a checkpoint, and compares all that this rank holds."""
    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.checkpoint.state import optimizer_shards, optimizer_step, weight_shards
    from megatron_omr.train.trainer import unwrap_chunks

    assert load_checkpoint(trainer, run / "step-00000002") == (2, {})
    assert optimizer_step(trainer) == 2
    weights = weight_shards(unwrap_chunks(trainer))
    for shard in [*weights, *optimizer_shards(trainer, with_copies=True)]:
        place = tuple(slice(o, o + s) for o, s in zip(shard.offset, shard.sizes, strict=True))
        assert shard.tensor().equal(wanted[shard.key][place]), (
            f"{shard.key} from {run}, rank {os.environ['RANK']}"
        )


def _read_whole(run: Path) -> dict[str, Any]:
    """Returns all tensors of a checkpoint."""
    import torch

    from megatron_omr.checkpoint.metadata import read_metadata
    from megatron_omr.checkpoint.shards import Shard, read_shards

    checkpoint, whole = run / "step-00000002", {}
    metadata = read_metadata(checkpoint)
    for key, found in metadata.state_dict_metadata.items():
        tensor = torch.empty(found.size, dtype=found.properties.dtype)  # pyright: ignore
        size = tuple(tensor.shape)
        place: Any = {"global_shape": size, "offset": (0,) * len(size), "sizes": size}
        read_shards(checkpoint, [Shard(key=key, **place, dtype=tensor.dtype, data=tensor)], metadata)
        whole[key] = tensor
    return whole
