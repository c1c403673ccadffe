"""Experts in Hugging Face folders: both layouts of their tensors, to a checkpoint and back, the same bits."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_omr.config import ParallelConfig
from megatron_omr.convert_folders.config import ToHfConfig, ToMegatronConfig
from megatron_omr.convert_folders.to_hf import to_hf
from megatron_omr.convert_folders.to_megatron import to_megatron

LAYOUTS = {
    "one": ParallelConfig(),
    "etp2": ParallelConfig(tp=2, sp=True),
    "tp2 ep2 pp2": ParallelConfig(tp=2, sp=True, ep=2, etp=1, pp=2, layers=(2, 2)),
}


@pytest.mark.parametrize(
    ("fixture", "turned", "layout"),
    [
        ("tiny_moe_hf", "", "one"),
        ("tiny_moe_hf", "gate_up_proj down_proj", "tp2 ep2 pp2"),
        ("tiny_mixed_hf", "", "tp2 ep2 pp2"),
        ("tiny_mixed_hf", "gate_up_proj down_proj", "etp2"),
    ],
)
def test_round_trip_keeps_the_bits(
    fixture: str, turned: str, layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Whatever the layout of the source, the published one comes back."""
    published: Path = request.getfixturevalue(fixture)
    parallel = LAYOUTS[layout]
    source, checkpoint, out = _turn(published, tmp_path, turned), tmp_path / "checkpoint", tmp_path / "hf"
    config = ToMegatronConfig(source=str(source), out=str(checkpoint), parallel=parallel)
    to_megatron(config, block_bytes=100_000, max_file_bytes=10**6)
    to_hf(ToHfConfig(source=str(checkpoint), out=str(out)), block_bytes=20_000)
    wanted, found = load_file(published / "model.safetensors"), load_file(out / "model.safetensors")
    assert wanted.keys() == found.keys()
    assert all(tensor.equal(found[name]) for name, tensor in wanted.items())


@pytest.mark.parametrize("turned", ["gate_up_proj", "down_proj"])
def test_two_layouts_in_one_layer_are_refused(tiny_moe_hf: Path, tmp_path: Path, turned: str) -> None:
    source = _turn(tiny_moe_hf, tmp_path, turned)
    with pytest.raises(ValueError, match=rf"has other shapes: .*{turned}"):
        to_megatron(ToMegatronConfig(source=str(source), out=str(tmp_path / "out")))


def test_square_tensor_is_read_by_the_other(tmp_path: Path) -> None:
    """Where gate_up_proj is square its shape fits both layouts; transformers then reads published files wrong."""
    from megatron_omr.convert.hf_folder import HfTensors
    from megatron_omr.convert.ops import StackExperts
    from megatron_omr.convert.rule import Rule
    from megatron_omr.convert.source import read_part

    gate_up, down = torch.randn(2, 8, 8), torch.randn(2, 8, 4)  # of modules: hidden 8, inner 4
    name = "model.language_model.layers.0.mlp.experts"
    rule = Rule(
        megatron="fc1",
        hf=(f"{name}.gate_up_proj",),
        stored=(f"{name}.gate_up_proj",),
        op=StackExperts(num_pieces=2),
        shape=(2, 8, 8),
        dim=1,
        key="fc1",
    )
    for number, layout in enumerate((lambda t: t, lambda t: t.transpose(1, 2).contiguous())):
        folder = tmp_path / str(number)
        folder.mkdir()
        tensors = {f"{name}.gate_up_proj": layout(gate_up), f"{name}.down_proj": layout(down)}
        save_file(tensors, folder / "model.safetensors")
        with HfTensors(folder) as source:
            out = torch.empty(2, 8, 8)
            read_part(source, rule, ((0, 0, 0), (2, 8, 8)), out)
            assert out.equal(gate_up)
            half = torch.empty(1, 4, 8)
            read_part(source, rule, ((1, 4, 0), (1, 4, 8)), half)
            assert half[0].equal(gate_up[1, 4:])


def _turn(folder: Path, tmp_path: Path, names: str) -> Path:
    """Returns a copy of the folder whose tensors of experts of these names lie as in transformers' modules."""
    out = tmp_path / "source"
    copytree(folder, out)
    tensors: dict[str, Tensor] = load_file(out / "model.safetensors")
    for name in tensors:
        if ".experts." in name and name.rpartition(".")[2] in names.split():
            tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
