"""The pickle of a checkpoint: read without running what is hidden in it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from megatron_omr.checkpoint.metadata import read_metadata, write_metadata


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.mark,)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    write_metadata(tmp_path, Metadata(state_dict_metadata={}), {MetadataIndex("a"): None})
    metadata = read_metadata(tmp_path)
    assert list(metadata.storage_data) == [MetadataIndex("a")]
    metadata.planner_data = Evil(tmp_path / "ran")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=rf"names {os.mkdir.__module__}.mkdir, which no checkpoint needs"):
        read_metadata(tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / ".metadata").read_bytes())
    assert (tmp_path / "ran").is_dir()  # the code would have run


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", b"text", pickle.dumps([1]), pickle.dumps(torch.Size([1]))]
)
def test_other_files_are_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"\.metadata is .*take another step-\* folder"):
        read_metadata(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.metadata is missing or damaged"):
        read_metadata(tmp_path)
