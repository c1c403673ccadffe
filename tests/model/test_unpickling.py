"""Checkpoints whose pickles would run code are refused, file by file, and nothing of them runs."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import tiny_trainer

pytestmark = pytest.mark.heavy

FILES = (".metadata", "common.pt", "__9_0.distcp")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def spoil(checkpoint: Path, name: str, mark: Path) -> None:
    saved = io.BytesIO()
    torch.save({"torch": Evil(mark)}, saved)
    if name == "common.pt":
        (checkpoint / name).write_bytes(saved.getvalue())
        return
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    if name == ".metadata":
        metadata.planner_data = Evil(mark)
    else:  # the states of the random generators, which are no tensor, come from a file of their own
        (index,) = (index for index in metadata.storage_data if "rng" in index.fqn)
        place = metadata.storage_data[index]
        place.relative_path, place.offset, place.length = name, 0, len(saved.getvalue())
        (checkpoint / name).write_bytes(saved.getvalue())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def test_no_pickle_of_a_checkpoint_runs_code(tiny_hf: Path, tmp_path: Path) -> None:
    messages = run_ranks(_load_spoilt, 1, str(tiny_hf), str(tmp_path))[0]
    for message, name in zip(messages, FILES, strict=True):
        assert f"{name} names {os.mkdir.__module__}.mkdir, which no checkpoint needs" in message
        assert "\n" not in message and not (tmp_path / name / "ran").exists()
    torch.load(tmp_path / "common.pt" / "common.pt", weights_only=False)  # the code would have run
    assert (tmp_path / "common.pt" / "ran").is_dir()


def _load_spoilt(folder: str, out: str) -> list[str]:
    from megatron_omr.train.checkpoint import load_checkpoint, load_weights, save_checkpoint
    from megatron_omr.train.trainer import unwrap_chunks

    trainer = tiny_trainer(folder, ParallelConfig())
    sound = save_checkpoint(trainer, Path(out), step=1, state={}, template=folder, keep=1)
    messages = []
    for name in FILES:
        copy = Path(out) / name
        shutil.copytree(sound, copy)
        spoil(copy, name, copy / "ran")
        with pytest.raises(ValueError) as error:
            load_checkpoint(trainer, copy)
        messages.append(str(error.value))
        with pytest.raises(ValueError):  # as omr convert does
            load_weights(unwrap_chunks(trainer), copy)
    assert load_checkpoint(trainer, sound) == (1, {})
    return messages
