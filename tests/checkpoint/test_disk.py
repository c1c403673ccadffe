"""A full disk, a folder that became read-only and a lost writer end the run in one line; what was saved stays whole."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_pipeline.failures import RankError
from megatron_omr.checkpoint.manifest import check_files, read_manifest
from megatron_omr.config import CheckpointConfig, ParallelConfig
from megatron_omr.train.run_folder import list_checkpoints
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import random_micro_batches, tiny_trainer

pytestmark = pytest.mark.heavy


@pytest.fixture
def disk(tiny_hf: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk that holds two checkpoints and a part of a third."""
    size = 12 * (tiny_hf / "model.safetensors").stat().st_size
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def _train(folder: str, run: str, accident: str) -> int:
    """Continues and saves each step, at most 20 more; after the third step something may happen. Returns the steps."""
    import torch.distributed as dist

    from megatron_omr.checkpoint.load import load_newest
    from megatron_omr.checkpoint.save import CheckpointWriter
    from megatron_omr.train.step import train_step

    trainer = tiny_trainer(folder, ParallelConfig())
    done, _, _ = load_newest(trainer, Path(run))
    if accident == "none":
        return done
    writer = CheckpointWriter(trainer, Path(run) / "checkpoints", CheckpointConfig(keep=20), template=folder)
    for step in range(done + 1, done + 21):
        writer.check()
        train_step(trainer, random_micro_batches(trainer, ParallelConfig(), seed=step))
        if step > 2 and accident == "read-only":
            writer.finish()
            dist.barrier()
            if dist.get_rank() == 0:
                subprocess.run(["mount", "-o", "remount,ro", run], check=True)
            dist.barrier()
        writer.save(step, {})
        if step > 2 and accident == "killed":
            for child in psutil.Process().children():
                child.kill()
    writer.finish()
    return step


def check_end(folder: Path, run: Path, accident: str, words: str) -> list[Path]:
    """Trains into the accident; returns the checkpoints, all whole and the newest loadable."""
    with pytest.raises(RankError, match=words) as error:
        run_ranks(_train, 2, str(folder), str(run), accident)
    assert "\n" not in str(error.value)
    checkpoints = list_checkpoints(run / "checkpoints")
    for checkpoint in checkpoints:
        check_files(checkpoint, read_manifest(checkpoint))
    newest = int(checkpoints[-1].name[5:])
    assert run_ranks(_train, 2, str(folder), str(run), "none") == [newest] * 2
    return checkpoints


def test_full_disk(tiny_hf: Path, disk: Path) -> None:
    checkpoints = check_end(
        tiny_hf,
        disk,
        "full",
        r"step-\d+ could not be written \(No space left on device.*the checkpoint before",
    )
    left = [path for path in (disk / "checkpoints").rglob("*") if path.is_file() and checkpoints]
    strays = [
        path for path in left if path.parents[0] not in checkpoints and path.parents[1] not in checkpoints
    ]
    assert sum(path.stat().st_size for path in strays) < 1_000_000, strays


def test_folder_that_became_read_only(tiny_hf: Path, disk: Path) -> None:
    checkpoints = check_end(tiny_hf, disk, "read-only", "Read-only file system.*step-00000003")
    assert [path.name for path in checkpoints] == ["step-00000001", "step-00000002"]


def test_killed_writer(tiny_hf: Path, tmp_path: Path) -> None:
    check_end(tiny_hf, tmp_path, "killed", r"writing step-\d+ on rank \d was killed")
