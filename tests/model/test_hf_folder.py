"""Files of a Hugging Face folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoProcessor

from megatron_omr.convert.hf_folder import HfTensors, HfWriter, copy_template, write_tensors


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


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "z": (4, 6),
        "model.layers.10.b": (7,),
        "model.layers.2.b": (5, 1, 2),
        "é": (),
        "large": (64, 32),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {f"{name}.bf16": t.bfloat16() for name, t in tensors.items()}


def entries_of(tensors: dict[str, torch.Tensor]) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]


def test_written_file_is_that_of_safetensors_to_the_byte(tmp_path: Path) -> None:
    tensors = some_tensors()
    with HfWriter(tmp_path, entries_of(tensors)) as writer:
        for name, tensor in reversed(tensors.items()):
            if name == "large":  # in parts, the last first
                writer.write(name, tensor[40:], first_row=40)
                writer.write(name, tensor[:40])
            else:
                writer.write(name, tensor)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_many_files_have_an_index_and_hold_each_tensor_once(tmp_path: Path) -> None:
    tensors = some_tensors()
    with HfWriter(tmp_path, entries_of(tensors), max_bytes=200) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.t().contiguous().t() if tensor.dim() == 2 else tensor)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = sorted({*index["weight_map"].values()})
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    read = {name: t for file in files for name, t in load_file(tmp_path / file).items()}
    assert index["weight_map"].keys() == read.keys() == tensors.keys()
    assert all(read[name].equal(tensor) for name, tensor in tensors.items())
    sizes = [sum(t.nbytes for t in load_file(tmp_path / file).values()) for file in files]
    assert len(files) > 2 and sum(size > 200 for size in sizes) == 2  # the large ones alone


@pytest.mark.parametrize(
    ("name", "tensor", "row"),
    [
        ("a", torch.ones(2, 3), 0),
        ("a", torch.ones(2, 2).bfloat16(), 0),
        ("a", torch.ones(1, 2), 2),
        ("a", torch.ones(3, 2), 0),
        ("b", torch.ones(4), 0),  # written before
    ],
)
def test_tensor_that_does_not_fit_is_refused(
    name: str, tensor: torch.Tensor, row: int, tmp_path: Path
) -> None:
    message = f"{name} of shape .* does not fit"
    out = HfWriter(tmp_path, entries_of({"a": torch.ones(2, 2), "b": torch.ones(4)}))
    with pytest.raises(ValueError, match=message), out as writer:
        writer.write("b", torch.ones(4))
        writer.write(name, tensor, first_row=row)


def test_tensors_that_were_never_written_are_named(tmp_path: Path) -> None:
    tensors = some_tensors()
    out = HfWriter(tmp_path, entries_of(tensors))
    with pytest.raises(ValueError, match="lacks large, which were never written"), out as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor[:63] if name == "large" else tensor)
