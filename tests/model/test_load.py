"""Weights of Hugging Face folders: wrong files and wrong shapes are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_omr.config import ParallelConfig
from megatron_omr.model_config import ModelConfig
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = pytest.mark.heavy

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


def test_other_output_layer_of_a_tied_model_is_refused(tiny_tied_hf: Path, tmp_path: Path) -> None:
    def untie(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1

    message = load_error(tiny_tied_hf, tmp_path, untie)
    assert "tie_word_embeddings=true, but lm_head.weight differs" in message


@pytest.mark.parametrize("fixture", ["tiny_hf", "tiny_tied_hf"])
def test_loading_leaves_no_weight_as_it_was_built(fixture: str, request: pytest.FixtureRequest) -> None:
    """build_model() draws none."""
    folder = str(request.getfixturevalue(fixture))
    assert run_ranks(_names_left, 2, folder, ParallelConfig(pp=2)) == [[], []]


def _names_left(folder: str, parallel: ParallelConfig) -> list[str]:
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model

    ranks, model = init_ranks(parallel), ModelConfig.from_hf(folder)
    before = torch.get_rng_state()
    chunks = build_model(model, parallel, ranks, precision="fp32")
    if ranks.pp_rank == 1:  # torch's own layer of the tower, on the first stage, draws its few weights
        assert torch.get_rng_state().equal(before)
    parameters = dict(chunks[0].named_parameters())
    for parameter in parameters.values():
        parameter.data.fill_(float("nan"))
    load_hf(chunks, folder, model, ranks)
    return [name for name, parameter in parameters.items() if parameter.isnan().any()]


def load_error(folder: Path, tmp_path: Path, change) -> str:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors")
    return run_ranks(_load_error, 1, str(copy))[0]


def _load_error(folder: str) -> str:
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model

    ranks, model = init_ranks(ParallelConfig()), ModelConfig.from_hf(folder)
    chunks = build_model(model, ParallelConfig(), ranks, precision="fp32")
    with pytest.raises(ValueError) as error:
        load_hf(chunks, folder, model, ranks)
    return str(error.value)
