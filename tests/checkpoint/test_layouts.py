"""Every layout loads what every other wrote: weights and optimizer states, equal to the bit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_omr.config import ParallelConfig
from tests.helpers.checkpoints import check_loaded, read_whole
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import random_micro_batches, tiny_trainer

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

LAYOUTS = {
    "one": (1, ParallelConfig()),
    "dp2": (2, ParallelConfig()),
    "tp2 sp": (2, ParallelConfig(tp=2, sp=True)),
    "cp2": (2, ParallelConfig(cp=2)),
    "pp2 vp2": (2, ParallelConfig(pp=2, vp=2)),
    "pp2 uneven": (2, ParallelConfig(pp=2, layers=(1, 3))),
    "tp2 pp2": (4, ParallelConfig(tp=2, pp=2)),
}


@pytest.mark.parametrize("fixture", ["tiny_hf", "tiny_tied_hf"])
def test_every_layout_loads_every_other(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, start = str(request.getfixturevalue(fixture)), tmp_path / "start"
    run_ranks(_train, 2, model, LAYOUTS["dp2"][1], str(start))
    written = {name: tmp_path / name for name in LAYOUTS}
    if fixture == "tiny_tied_hf":  # tied weights lie twice in pipelines alone
        written = {name: written[name] for name in ("dp2", "pp2 vp2")}
    for name, out in written.items():
        run_ranks(_compare, LAYOUTS[name][0], model, LAYOUTS[name][1], str(start), [start], out)
    for name in written:
        others = [out for other, out in written.items() if other != name]
        run_ranks(_compare, LAYOUTS[name][0], model, LAYOUTS[name][1], str(start), others, None)


def _train(folder: str, parallel: ParallelConfig, out: str) -> None:
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.train.step import train_step

    trainer = tiny_trainer(folder, parallel)
    for seed in (1, 2):
        train_step(trainer, random_micro_batches(trainer, parallel, seed=seed))
    save_checkpoint(trainer, Path(out), step=2, state={}, template=folder, keep=1)


def _compare(
    folder: str, parallel: ParallelConfig, start: str, sources: list[Path], out: Path | None
) -> None:
    """Loads each of `sources` and compares all that this rank holds with `start`; writes `out`."""
    import torch

    from megatron_omr.checkpoint.save import save_checkpoint

    whole = read_whole(Path(start))
    trainer = tiny_trainer(folder, parallel)
    for source in sources:
        check_loaded(trainer, source, whole)
    if out is not None:
        save_checkpoint(trainer, out, step=2, state={}, template=folder, keep=1)
        if int(os.environ["RANK"]) == 0:
            ours = read_whole(out)
            assert ours.keys() == whole.keys()
            assert all(torch.equal(tensor, whole[key]) for key, tensor in ours.items())
