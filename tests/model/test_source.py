"""Hugging Face folders: wrong, missing and unknown tensors are all named before anything is read."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_omr.convert.hf_folder import HfTensors
from megatron_omr.convert.mapping import build_rules
from megatron_omr.convert.source import check_tensors
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.shapes import published_shape

Weights = dict[str, torch.Tensor]
EMBEDDING = "model.embed_tokens.weight"


def check_changed(
    folder: Path, tmp_path: Path, change: Callable[[Weights], object], **config: object
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors")
    fields = json.loads((copy / "config.json").read_text())
    fields["text_config"] |= config
    (copy / "config.json").write_text(json.dumps(fields))
    with HfTensors(copy) as source:
        check_tensors(source, build_rules(ModelConfig.from_hf(copy)))


def find_fault(folder: Path, tmp_path: Path, change: Callable[[Weights], object], **config: object) -> str:
    with pytest.raises(ValueError) as error:
        check_changed(folder, tmp_path, change, **config)
    assert "\n" not in str(error.value) and str(tmp_path / "copy") in str(error.value)
    return str(error.value)


def test_everything_that_is_wrong_is_listed_at_once(tiny_hf: Path, tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for layer in range(4):
            del weights[f"model.layers.{layer}.input_layernorm.weight"]
        del weights["visual.merger.ln_q.weight"]
        weights["model.layers.0.mlp.down_proj.weight"] = torch.ones(128, 255)
        weights["model.layers.1.mlp.down_proj.weight"] = torch.ones(128, 255)
        weights["model.layers.2.self_attn.q_proj.bias"] = torch.ones(128, dtype=torch.int8)
        weights |= {"extra": torch.ones(1), "model.layers.7.mlp.down_proj.weight": torch.ones(1)}
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)  # old files have it

    message = find_fault(tiny_hf, tmp_path, change)
    for part in (
        "lacks: visual.merger.ln_q.weight; model.layers.*.input_layernorm.weight (4 of them);",
        "it has these, which the model does not: extra; model.layers.7.mlp.down_proj.weight;",
        "model.layers.*.mlp.down_proj.weight is [128, 255] and should be [128, 256] (2 of them)",
        "q_proj.bias in I8",
    ):
        assert part in message, message
    assert "inv_freq" not in message


def test_rows_of_the_vocabulary_that_config_does_not_count_are_explained(
    tiny_hf: Path, tmp_path: Path
) -> None:
    def pad(weights: Weights) -> None:
        for name in (EMBEDDING, "lm_head.weight"):
            weights[name] = torch.cat([weights[name], torch.zeros(64, 128)])

    rows = load_file(tiny_hf / "model.safetensors")[EMBEDDING].shape[0]
    message = find_fault(tiny_hf, tmp_path, pad)
    assert f"The embedding has {rows + 64} rows, and config.json says vocab_size={rows}" in message
    assert f"set vocab_size={rows + 64}" in message


def test_missing_output_layer_suggests_tied_embeddings(tiny_hf: Path, tmp_path: Path) -> None:
    message = find_fault(tiny_hf, tmp_path, lambda weights: weights.pop("lm_head.weight"))
    assert "lacks: lm_head.weight" in message and "tie_word_embeddings=true" in message


def test_other_output_layer_of_a_tied_model_is_refused(tiny_tied_hf: Path, tmp_path: Path) -> None:
    def untie(weights: Weights) -> None:
        weights["lm_head.weight"] = weights[EMBEDDING].clone()
        weights["lm_head.weight"][-1, -1] += 1

    message = find_fault(tiny_tied_hf, tmp_path, untie)
    assert "tie_word_embeddings=true, but lm_head.weight differs" in message


def test_repeated_embedding_of_a_tied_model_is_no_fault_also_with_nan(
    tiny_tied_hf: Path, tmp_path: Path
) -> None:
    def repeat(weights: Weights) -> None:
        weights[EMBEDDING][0, 0] = math.nan
        weights["lm_head.weight"] = weights[EMBEDDING].clone()

    check_changed(tiny_tied_hf, tmp_path, repeat)


@pytest.mark.parametrize(
    ("name", "parameters", "vocabulary"),
    [
        ("Qwen2.5-VL-3B-Instruct", 3_754_622_976, 151_936),
        ("Qwen2.5-VL-7B-Instruct", 8_292_166_656, 152_064),
        ("Qwen2.5-VL-32B-Instruct", 33_452_718_336, 152_064),
        ("Qwen2.5-VL-72B-Instruct", 73_410_777_344, 152_064),
        ("Qwen3-VL-2B-Instruct", 2_127_532_032, 151_936),
        ("Qwen3-VL-4B-Instruct", 4_437_815_808, 151_936),
        ("Qwen3-VL-8B-Instruct", 8_767_123_696, 151_936),
        ("Qwen3-VL-32B-Instruct", 33_357_390_064, 151_936),
    ],
)
def test_table_has_every_parameter_of_the_published_models(
    name: str, parameters: int, vocabulary: int
) -> None:
    """Counts from the published models; the rows of the vocabulary include padding."""
    model = published_shape(name)
    shapes = {
        tensor: shape
        for rule in build_rules(model)
        for tensor, shape in zip(rule.hf, rule.hf_shapes(), strict=True)
    }
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    assert shapes["model.language_model.embed_tokens.weight"][0] == vocabulary
    assert ("lm_head.weight" in shapes) != model.tie_word_embeddings
