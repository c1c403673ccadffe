"""What is saved in the background is what the trainer was when it was asked to, whatever it becomes meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from megatron_omr.checkpoint.manifest import check_files, read_manifest
from megatron_omr.config import CheckpointConfig, ParallelConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import random_micro_batches, tiny_trainer

pytestmark = pytest.mark.heavy

OVERLAP = ParallelConfig(overlap=True)  # weights are gathered while the next step runs


def test_background_save_holds_the_step_it_was_called_after(tiny_tied_hf: Path, tmp_path: Path) -> None:
    run_ranks(_save_both_ways, 2, str(tiny_tied_hf), str(tmp_path))
    waited, background = (tmp_path / name / "step-00000001" for name in ("waited", "background"))
    check_files(background, read_manifest(background))
    assert read_manifest(background) == read_manifest(waited)


def _save_both_ways(folder: str, out: str) -> None:
    """Saves and waits; then saves with writers that sleep until a step was made."""
    from megatron_omr.checkpoint.save import CheckpointWriter
    from megatron_omr.train.step import train_step

    trainer = tiny_trainer(folder, OVERLAP, precision="bf16")
    train_step(trainer, random_micro_batches(trainer, OVERLAP, seed=1))
    waited, background = (
        CheckpointWriter(trainer, Path(out) / name, CheckpointConfig(background=wait), template=folder)
        for name, wait in (("waited", False), ("background", True))
    )
    waited.save(1, {"now": 1})
    assert not psutil.Process().children()
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGSTOP))
    background.save(1, {"now": 1})
    train_step(trainer, random_micro_batches(trainer, OVERLAP, seed=2))
    background.check()
    assert not (Path(out) / "background" / "step-00000001").exists()
    (writer,) = psutil.Process().children()
    writer.send_signal(signal.SIGCONT)
    background.finish()
    assert background.take_pause() > 0 and background.take_pause() == 0
