"""Files of a Hugging Face folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from megatron_omr.convert.hf_folder import HfTensors, write_tensors


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        HfTensors(tmp_path)


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(((name, torch.ones(4)) for name in "ab"), tmp_path, max_bytes=16)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 3 and set(modes.values()) == {0o640}, modes
