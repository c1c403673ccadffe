"""Checkpoints: loaded in the same or another layout, complete or absent, and clear about broken ones."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_pipeline.failures import RankError
from megatron_omr.config import ParallelConfig
from megatron_omr.dtypes import Precision
from megatron_omr.train.run_folder import list_checkpoints
from tests.helpers.checkpoints import STATE, Step, check_same_step, load_and_step, next_step, train_and_save
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import OPTIM, exported, random_micro_batches, tiny_trainer

pytestmark = pytest.mark.heavy

WRITER = ParallelConfig()  # of two data-parallel ranks


@pytest.fixture(scope="module")
def saved(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Step]:
    """A folder with the checkpoint of two steps and the weights then and a step later; that step."""
    return _save_in(WRITER, tiny_hf, tmp_path_factory.mktemp("checkpoints"))


def _save_in(parallel: ParallelConfig, model: Path, out: Path) -> tuple[Path, Step]:
    return out, run_ranks(train_and_save, 2, str(model), parallel, str(out))[-1]  # of the last stage


def _save_and_lose_rank_1(folder: str, out: str) -> None:
    """Rank 1 is killed after a checkpoint; rank 0 writes how long it took to notice."""
    import torch.distributed as dist

    from megatron_omr.checkpoint.save import save_checkpoint

    trainer = tiny_trainer(folder, WRITER)
    save_checkpoint(trainer, Path(out), step=1, state=STATE, template=folder, keep=2)
    Path(out, f"children-{dist.get_rank()}").write_text(str(len(psutil.Process().children())))
    dist.barrier()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    with contextlib.suppress(RuntimeError):
        dist.barrier()
    Path(out, "seconds").write_text(str(time.monotonic() - started))


def test_same_layout_continues_bit_for_bit(tiny_hf: Path, saved: tuple[Path, Step], tmp_path: Path) -> None:
    folder, wanted = saved
    results = run_ranks(load_and_step, 2, str(tiny_hf), WRITER, str(folder / "step-00000002"), str(tmp_path))
    assert results == [(2, STATE, wanted)] * 2
    for name in ("before.safetensors", "after.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_death_after_a_checkpoint_is_noticed(tiny_hf: Path, tmp_path: Path) -> None:
    """No process that the writer started keeps the dead rank's connections open."""
    with pytest.raises(RankError, match="rank 1 was killed by SIGKILL"):
        run_ranks(_save_and_lose_rank_1, 2, str(tiny_hf), str(tmp_path))
    assert [(tmp_path / f"children-{rank}").read_text() for rank in (0, 1)] == ["0", "0"]
    assert float((tmp_path / "seconds").read_text()) < 2  # 0.01 s was seen; rank 0 is killed after 3 s


def _save_and_load_across_backends(folder: str, out: str) -> None:
    """Plays Transformer Engine, whose norms have an extra state, as writer and as reader."""
    import torch

    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.model import spec
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    class EngineNorm(spec.RMSNorm):
        def get_extra_state(self) -> torch.Tensor:
            return torch.empty(0, dtype=torch.uint8)

        def set_extra_state(self, state: object) -> None:
            raise AssertionError("Transformer Engine would unpickle it")

    parallel = ParallelConfig()
    plain = tiny_trainer(folder, parallel)
    spec.RMSNorm = EngineNorm
    engine = build_trainer(folder, parallel, plain.ranks, OPTIM, precision="fp32", steps=8)
    for writer, reader in ((plain, engine), (engine, plain)):
        train_step(writer, random_micro_batches(writer, parallel, seed=1))
        saved = save_checkpoint(writer, Path(out), step=2, state=STATE, template=folder, keep=1)
        wanted = exported(writer)
        load_checkpoint(reader, saved)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in exported(reader).items())
        shutil.rmtree(saved)


def test_checkpoint_of_one_backend_loads_into_the_other(tiny_hf: Path, tmp_path: Path) -> None:
    """Transformer Engine's layers have extra states that ours lack, and the reverse."""
    run_ranks(_save_and_load_across_backends, 1, str(tiny_hf), str(tmp_path))


@pytest.mark.parametrize(
    ("parallel", "processes"),
    [(ParallelConfig(tp=2, sp=True), 2), (ParallelConfig(pp=2, vp=2), 2)],
    ids=["tp2 sp", "pp2 vp2"],
)
def test_another_layout_has_the_same_weights_and_makes_the_same_step(
    tiny_hf: Path, saved: tuple[Path, Step], tmp_path: Path, parallel: ParallelConfig, processes: int
) -> None:
    folder, wanted = saved
    checkpoint = str(folder / "step-00000002")
    results = run_ranks(load_and_step, processes, str(tiny_hf), parallel, checkpoint, str(tmp_path))
    step, state, seen = results[-1]  # of the last stage
    assert (step, state) == (2, STATE)
    check_same_step(wanted, folder, seen, tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpoint_before_the_first_step_continues_bit_for_bit(
    tiny_hf: Path, tmp_path: Path, precision: Precision
) -> None:
    """Groups without signal and NaN gradients leave the optimizer without a state."""
    never, saving, loading = (tmp_path / name for name in ("never", "saving", "loading"))
    for out in (never, saving, loading):
        out.mkdir()
    wanted = run_ranks(_first_step, 2, str(tiny_hf), str(never), precision, False)
    assert run_ranks(_first_step, 2, str(tiny_hf), str(saving), precision, True) == wanted
    checkpoint = str(saving / "step-00000002")
    results = run_ranks(load_and_step, 2, str(tiny_hf), WRITER, checkpoint, str(loading), precision)
    assert [seen for _, _, seen in results] == wanted
    weights = {(out / "after.safetensors").read_bytes() for out in (never, saving, loading)}
    assert len(weights) == 1


def _first_step(folder: str, out: str, precision: Precision, saves: bool) -> Step:
    from megatron_omr.checkpoint.save import save_checkpoint

    trainer = tiny_trainer(folder, WRITER, precision=precision)
    if saves:
        save_checkpoint(trainer, Path(out), step=2, state=STATE, template=folder, keep=2)
    return next_step(trainer, WRITER, out)


def test_newest_are_kept_and_leftovers_are_not_listed(tiny_hf: Path, tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.partial").mkdir()  # of a kill
    (tmp_path / "step-00000001-best").mkdir()
    (tmp_path / "step-notes.txt").touch()
    names = run_ranks(_save_often, 1, str(tiny_hf), str(tmp_path))[0]
    assert names == [
        ["step-00000001"],
        ["step-00000001", "step-00000002"],
        ["step-00000002", "step-00000010"],
    ]
    left = {
        ".step-00000009.partial",
        "step-00000001-best",
        "step-00000002",
        "step-00000010",
        "step-notes.txt",
    }
    assert {path.name for path in tmp_path.iterdir()} == left


def _save_often(folder: str, out: str) -> list[list[str]]:
    trainer = _stepped(folder)
    return [_save(trainer, folder, out, step=step) for step in (1, 2, 10)]


def _stepped(folder: str) -> Any:
    from megatron_omr.train.step import train_step

    trainer = tiny_trainer(folder, ParallelConfig())
    train_step(trainer, random_micro_batches(trainer, ParallelConfig(), seed=1))
    return trainer


def _save(trainer: Any, template: str, out: str, *, step: int) -> list[str]:
    from megatron_omr.checkpoint.save import save_checkpoint

    save_checkpoint(trainer, Path(out), step=step, state={"now": step}, template=template, keep=2)
    return [path.name for path in list_checkpoints(Path(out))]


def test_save_that_fails_leaves_the_older_checkpoint(tiny_hf: Path, tmp_path: Path) -> None:
    assert run_ranks(_fail_to_save, 1, str(tiny_hf), str(tmp_path)) == [{"now": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def _fail_to_save(folder: str, out: str) -> Any:
    from megatron_omr.checkpoint.load import load_checkpoint

    trainer = _stepped(folder)
    _save(trainer, folder, out, step=1)
    for step in (1, 2):
        with pytest.raises(OSError, match="No such file or directory: .*not there"):
            _save(trainer, f"{folder}/not there", out, step=step)
    return load_checkpoint(trainer, Path(out) / "step-00000001")[1]


def test_damaged_newest_is_passed_over_and_outlives_rotation(tiny_hf: Path, tmp_path: Path) -> None:
    """Steps 1, 2 and 10 are saved; 10 and 2 are damaged; step 3 follows on step 1."""
    folder = tmp_path / "checkpoints"
    left = [folder / ".step-00000007.partial", folder / ".step-00000001.old", tmp_path / ".hf.partial"]
    for path in left:  # of a kill
        (path / "hf").mkdir(parents=True)
    (line,), (alike,) = run_ranks(_continue_past_damage, 2, str(tiny_hf), str(tmp_path))
    assert line == alike and "\n" not in line
    assert line.startswith("the run continues from step-00000001: ")
    assert line.index("step-00000010/__1_0.distcp is damaged") < line.index("step-00000002 has no state.json")
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000010"]
    assert not any(path.exists() for path in left)


def _continue_past_damage(folder: str, run: str) -> list[str]:
    import torch.distributed as dist

    from megatron_omr.checkpoint.load import load_newest
    from megatron_omr.checkpoint.save import save_checkpoint

    trainer, out = tiny_trainer(folder, WRITER), Path(run) / "checkpoints"
    assert load_newest(trainer, Path(run)) == (0, {}, "")
    for step in (1, 2, 10):
        save_checkpoint(trainer, out, step=step, state={"now": step}, template=folder, keep=3)
    if dist.get_rank() == 0:
        (out / "step-00000010" / "__1_0.distcp").write_bytes(b"")  # the other rank's part
        (out / "step-00000002" / "state.json").unlink()
    dist.barrier()
    step, state, line = load_newest(trainer, Path(run))
    assert (step, state) == (1, {"now": 1})
    save_checkpoint(trainer, out, step=3, state={}, template=folder, keep=1)
    return [line]
