"""Weights from Hugging Face to Megatron and back: bit-identical in every layout, clear about wrong files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_omr.config import ModelConfig, ParallelConfig
from megatron_omr.convert.ops import FlattenPatch, InterleaveQKV, Op, Same, cut, uncut
from tests.helpers.ranks import init_ranks, run_ranks

LAYOUTS = [(ParallelConfig(), 1), (ParallelConfig(tp=2), 2), (ParallelConfig(pp=2), 2), (ParallelConfig(), 2)]


@pytest.mark.parametrize(("parallel", "processes"), LAYOUTS, ids=["one", "tp2", "pp2", "dp2"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_round_trip_is_bit_identical(
    tiny_hf: Path, tiny_tied_hf: Path, tmp_path: Path, parallel: ParallelConfig, processes: int, tied: bool
) -> None:
    folder = tiny_tied_hf if tied else tiny_hf
    results = run_ranks(_round_trip, processes, str(folder), parallel, str(tmp_path / "out"))
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(after) == sorted(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(result == results[0] for result in results)  # names and sums, the same on every rank
    names = [name for name, _ in results[0]]
    assert ("lm_head.weight" in names) == (not tied)
    assert "model.language_model.layers.3.mlp.up_proj.weight" in names
    assert "model.visual.merger.mlp.2.bias" in names


def test_small_buckets_export_the_same(tiny_hf: Path, tmp_path: Path) -> None:
    parallel = ParallelConfig(tp=2)
    whole = run_ranks(_round_trip, 2, str(tiny_hf), parallel, str(tmp_path / "a"))[0]
    small = run_ranks(_round_trip, 2, str(tiny_hf), parallel, str(tmp_path / "b"), 1_000)[0]
    assert small == whole


def test_saved_folder_loads_in_transformers(tiny_hf: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    out = tmp_path / "out"
    out.mkdir()
    (out / "stale").touch()
    run_ranks(_round_trip, 1, str(tiny_hf), ParallelConfig(), str(out), None, 10**6)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert {p.name for p in out.glob("*.safetensors")} == set(index["weight_map"].values())
    assert not (out / "stale").exists()
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.float32
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
    ):
        assert (out / name).read_bytes() == (tiny_hf / name).read_bytes()
    assert AutoProcessor.from_pretrained(out) is not None


def test_dtype_follows_the_template(tiny_hf: Path, tmp_path: Path) -> None:
    folder = copy_folder(tiny_hf, tmp_path / "bf16")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    weights = {name: t.bfloat16() for name, t in load_file(tiny_hf / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    run_ranks(_round_trip, 1, str(folder), ParallelConfig(), str(tmp_path / "out"))  # through fp32 parameters
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(t.dtype == torch.bfloat16 and torch.equal(t, weights[name]) for name, t in after.items())


def test_module_names_load_like_published_names(tiny_hf: Path, tmp_path: Path) -> None:
    folder = copy_folder(tiny_hf, tmp_path / "new")
    weights = load_file(tiny_hf / "model.safetensors")
    renamed = {
        name.replace("visual.", "model.visual.").replace("model.", "model.language_model.", 1)
        if name.startswith("model.")
        else name.replace("visual.", "model.visual."): tensor
        for name, tensor in weights.items()
    }
    assert "model.language_model.norm.weight" in renamed and "model.visual.merger.ln_q.weight" in renamed
    save_file(renamed, folder / "model.safetensors")
    run_ranks(_round_trip, 1, str(folder), ParallelConfig(), str(tmp_path / "out"))
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], weights[name]) for name in weights)


NORM, DOWN = "model.layers.1.input_layernorm.weight", "model.layers.0.mlp.down_proj.weight"


def test_missing_tensor_is_named(tiny_hf: Path, tmp_path: Path) -> None:
    message = load_error(tiny_hf, tmp_path, lambda weights: weights.pop(NORM))
    assert "lacks model.language_model.layers.1.input_layernorm.weight" in message


def test_unexpected_tensor_is_named(tiny_hf: Path, tmp_path: Path) -> None:
    message = load_error(tiny_hf, tmp_path, lambda weights: weights.update(extra=torch.ones(1)))
    assert "has extra" in message


def test_wrong_shape_is_named_with_both_shapes(tiny_hf: Path, tmp_path: Path) -> None:
    message = load_error(tiny_hf, tmp_path, lambda weights: weights.update({DOWN: torch.ones(128, 255)}))
    assert "layers.0.mlp.down_proj.weight" in message
    assert "[128, 255]" in message and "[128, 256]" in message


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    from megatron_omr.convert.hf_folder import HfTensors

    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        HfTensors(tmp_path)


small = st.integers(1, 4)


@st.composite
def ops_with_tensors(draw: st.DrawFn) -> tuple[Op, list[torch.Tensor], int]:
    """An op, fitting Hugging Face tensors, and a number of tensor-parallel ranks that can share them."""
    size = draw(st.sampled_from([1, 2, 4]))
    groups, heads, head_dim = size * draw(small), draw(small), draw(small)
    tail = draw(st.sampled_from([(), (3,)]))
    rows = {"q": groups * heads * head_dim, "kv": groups * head_dim}

    def fill(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
        return [torch.randn(shape) for shape in shapes]

    qkv = dict(num_groups=groups, head_dim=head_dim)
    cases = [
        (Same(), fill((rows["q"], *tail))),
        (Same(num_pieces=2), fill((rows["q"], *tail), (rows["q"], *tail))),
        (InterleaveQKV(heads_per_group=heads, **qkv), fill(*((rows[r], *tail) for r in ("q", "kv", "kv")))),
        (InterleaveQKV(stacked=True, **qkv), fill((3 * rows["kv"], *tail))),
        (FlattenPatch(kernel=(3, 2, heads, heads)), fill((rows["q"], 3, 2, heads, heads))),
    ]
    return (*draw(st.sampled_from(cases)), size)


@settings(max_examples=80, deadline=None)
@given(ops_with_tensors())
def test_ops_and_cuts_are_their_own_inverse(case: tuple[Op, list[torch.Tensor], int]) -> None:
    op, tensors, size = case
    pieces = op.to_megatron(tensors)
    assert len(pieces) == op.num_pieces
    for dim in (0, None):
        shards = [cut(pieces, dim, rank, size) for rank in range(size)]
        again = op.to_hf(uncut(shards, dim, op.num_pieces))
        assert all(torch.equal(a, b) for a, b in zip(again, tensors, strict=True))


def test_qkv_rows_of_a_rank_are_whole_groups() -> None:
    q, k, v = torch.arange(8), torch.arange(100, 104), torch.arange(200, 204)  # 4 heads, 2 groups, head of 2
    op = InterleaveQKV(num_groups=2, heads_per_group=2, head_dim=2)
    second = cut(op.to_megatron([q, k, v]), 0, 1, 2)
    assert second.tolist() == [4, 5, 6, 7, 102, 103, 202, 203]


def test_gate_and_up_are_cut_apart() -> None:
    second = cut(Same(num_pieces=2).to_megatron([torch.arange(4), torch.arange(10, 14)]), 0, 1, 2)
    assert second.tolist() == [2, 3, 12, 13]


def load_error(folder: Path, tmp_path: Path, change) -> str:
    copy = copy_folder(folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors")
    return run_ranks(_load_error, 1, str(copy))[0]


def copy_folder(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def _load(folder: str, parallel: ParallelConfig):
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model

    ranks, model = init_ranks(parallel), ModelConfig.from_hf(folder)
    chunks = build_model(model, parallel, ranks, precision="fp32")
    load_hf(chunks, folder, model, ranks)
    return chunks, model, ranks


def _load_error(folder: str) -> str:
    with pytest.raises(ValueError) as error:
        _load(folder, ParallelConfig())
    return str(error.value)


def _round_trip(
    folder: str,
    parallel: ParallelConfig,
    out: str,
    bucket_bytes: int | None = None,
    max_shard_bytes: int = 10**9,
) -> list[tuple[str, float]]:
    from megatron_omr.convert import export

    if bucket_bytes is not None:
        export._BUCKET_BYTES = bucket_bytes
    chunks, model, ranks = _load(folder, parallel)
    export.save_hf(chunks, model, ranks, out, template=folder, max_shard_bytes=max_shard_bytes)
    return [(name, t.double().sum().item()) for name, t in export.export_weights(chunks, model, ranks)]
