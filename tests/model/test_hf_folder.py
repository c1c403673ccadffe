"""Files of a Hugging Face folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoProcessor

from megatron_omr.convert.hf_folder import HfTensors, HfWriter, copy_template


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        HfTensors(tmp_path)


def test_damaged_or_missing_weights_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    header = whole.replace(b'"dtype"', b'"dtypo"')
    for damaged in (whole[:-1], whole[:20], b"", header, whole + b"x", b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path} cannot be read: .*; fetch the file again"):
            HfTensors(tmp_path)
    index = {"weight_map": {"a": "model.safetensors", "b": "model.safetensors", "c": "none.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="none.safetensors cannot be read: it does not exist; fetch"):
        HfTensors(tmp_path)
    del index["weight_map"]["c"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model.safetensors lacks b of model.safetensors.index.json"):
        HfTensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index.json cannot be read: Expecting .*; fetch the file again"):
        HfTensors(tmp_path)


def test_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4, 2)}, tmp_path / "model.safetensors")
    with HfTensors(tmp_path) as tensors:
        os.truncate(tmp_path / "model.safetensors", 90)
        with pytest.raises(ValueError, match="model.safetensors ends at byte 90, in the middle of a tensor"):
            tensors.read("a")


def test_parts_are_those_that_safetensors_reads(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    with HfTensors(tmp_path) as source:
        names = {name: place.name for name, place in source.places.items()}
        assert sorted(names.values()) == sorted(tensors)
        assert all(source.read(name).equal(tensors[stored]) for name, stored in names.items())
        rows = torch.empty(3, 32)
        source.read_rows("large", 5, rows)
        assert rows.equal(tensors["large"][5:8])


def test_one_tensor_in_both_spellings_is_refused(tmp_path: Path) -> None:
    names = ["visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"]
    save_file({name: torch.ones(4) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"has both .*{names[0]}"):
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
        with HfWriter(tmp_path, entries_of(dict.fromkeys("ab", torch.ones(4))), max_bytes=16) as writer:
            for name in "ab":
                writer.write(name, torch.ones(4))
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
                writer.write_block(name, tensor[40:], first_row=40)
                writer.write_block(name, tensor[:40, 20:], first_row=0, first_column=20)
                writer.write_block(name, tensor[:40, :20], first_row=0)
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
        ("b", torch.ones(4, 1), 0),  # written before
    ],
)
def test_tensor_that_does_not_fit_is_refused(
    name: str, tensor: torch.Tensor, row: int, tmp_path: Path
) -> None:
    message = f"{name}: .* does not fit"
    out = HfWriter(tmp_path, entries_of({"a": torch.ones(2, 2), "b": torch.ones(4)}))
    with pytest.raises(ValueError, match=message), out as writer:
        writer.write("b", torch.ones(4))
        writer.write_block(name, tensor, first_row=row)


def test_tensors_that_were_never_written_are_named(tmp_path: Path) -> None:
    tensors = some_tensors()
    out = HfWriter(tmp_path, entries_of(tensors))
    with pytest.raises(ValueError, match="lacks large, which were never written"), out as writer:
        for name, tensor in tensors.items():
            if name == "large":
                writer.write_block(name, tensor[:63], first_row=0)
            else:
                writer.write(name, tensor)
