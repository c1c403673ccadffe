"""Checkpoints of models with experts: every layout loads what every other wrote, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_omr.config import ParallelConfig
from tests.helpers.checkpoints import check_loaded, read_whole
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
FOUR = ParallelConfig(pp=2, ep=2, layers=(2, 2))


def test_every_layout_loads_every_other(tiny_moe_hf: Path, tmp_path: Path) -> None:
    run_ranks(_go_through, 2, str(tiny_moe_hf), str(tmp_path), timeout=600)
    run_ranks(_pass_on, 4, str(tiny_moe_hf), str(tmp_path), len(LAYOUTS), FOUR)
    run_ranks(_load, 1, str(tiny_moe_hf), str(tmp_path))


def _go_through(folder: str, out: str) -> None:
    """Trains and saves at EP2; then each layout of two ranks passes it on."""
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.parallel import shutdown
    from megatron_omr.train.step import train_step

    trainer = _build(folder, EP2, "start")
    for seed in (1, 2):
        train_step(trainer, random_micro_batches(trainer, EP2, seed=seed))
    save_checkpoint(trainer, Path(out, "0"), step=2, state={}, template=folder, keep=1)
    shutdown()
    for number, layout in enumerate(LAYOUTS):
        _pass_on(folder, out, number, layout)


def _pass_on(folder: str, out: str, number: int, layout: ParallelConfig) -> None:
    """Loads checkpoint `number` and writes the next one; both must equal the first, to the bit."""
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.parallel import shutdown

    wanted, trainer = read_whole(Path(out, "0")), _build(folder, layout, str(number))
    check_loaded(trainer, Path(out, str(number)), wanted)
    save_checkpoint(trainer, Path(out, str(number + 1)), step=2, state={}, template=folder, keep=1)
    found = read_whole(Path(out, str(number + 1)))
    assert found.keys() == wanted.keys()
    assert all(tensor.equal(wanted[key]) for key, tensor in found.items()), layout
    shutdown()


def _load(folder: str, out: str) -> None:
    trainer = _build(folder, ParallelConfig(), "one")
    check_loaded(trainer, Path(out, str(len(LAYOUTS) + 1)), read_whole(Path(out, "0")))


def _build(folder: str, parallel: ParallelConfig, world: str) -> Any:
    from megatron_omr.train.trainer import build_trainer

    return build_trainer(
        folder, parallel, init_ranks(parallel, world=world), OPTIM, precision="fp32", steps=8
    )
