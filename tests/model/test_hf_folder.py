"""Files of a Hugging Face folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor

from megatron_omr.convert.hf_folder import HfTensors, copy_template, write_tensors


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        HfTensors(tmp_path)


def test_damaged_or_missing_weights_are_named(tmp_path: Path) -> None:
    write_tensors(((name, torch.ones(4)) for name in "ab"), tmp_path, max_bytes=16)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    tensors = HfTensors(tmp_path)
    for name, message in (
        ("a", f"{first} cannot be read: Error while"),
        ("b", f"{second} cannot be read: it does"),
    ):
        with pytest.raises(ValueError, match=message):
            tensors.read(name)
    first.rename(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="model.safetensors cannot be read: .*; fetch the file again"):
        HfTensors(tmp_path)


def test_exported_processor_is_read_by_transformers_4_and_5(tiny_hf: Path, tmp_path: Path) -> None:
    five, out = tmp_path / "five", tmp_path / "out"
    AutoProcessor.from_pretrained(tiny_hf).save_pretrained(five)
    assert not (five / "preprocessor_config.json").exists()
    copy_template(five, out)
    new = AutoImageProcessor.from_pretrained(out)
    (out / "processor_config.json").unlink()  # which transformers 4 does not know
    old = AutoImageProcessor.from_pretrained(out)
    assert old.to_dict() == new.to_dict() == AutoImageProcessor.from_pretrained(tiny_hf).to_dict()
    saved = json.loads((out / "preprocessor_config.json").read_text())
    assert (saved["min_pixels"], saved["max_pixels"]) == (784, 4_194_304)


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(((name, torch.ones(4)) for name in "ab"), tmp_path, max_bytes=16)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 3 and set(modes.values()) == {0o640}, modes
