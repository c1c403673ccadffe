"""Our model in every layout against transformers, on the same random weights, texts and images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_omr.config import ModelConfig, ParallelConfig, ParityConfig
from tests.helpers.ranks import init_ranks, run_ranks

LAYOUTS = {
    "one process": (ParallelConfig(), 1),
    "tp2": (ParallelConfig(tp=2), 2),
    "tp2 sp": (ParallelConfig(tp=2, sp=True), 2),
    "pp2": (ParallelConfig(pp=2), 2),
    "cp2": (ParallelConfig(cp=2), 2),
    "dp2": (ParallelConfig(), 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_untied_model_equals_transformers(tiny_hf: Path, layout: str) -> None:
    assert_parity(tiny_hf, *LAYOUTS[layout])


@pytest.mark.parametrize("layout", ["one process", "tp2 sp", "pp2", "dp2"])
def test_tied_model_equals_transformers(tiny_tied_hf: Path, layout: str) -> None:
    assert_parity(tiny_tied_hf, *LAYOUTS[layout])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [ParallelConfig(tp=2, pp=2, sp=True), ParallelConfig(pp=2, cp=2)])
def test_combined_layouts_equal_transformers(tiny_tied_hf: Path, parallel: ParallelConfig) -> None:
    assert_parity(tiny_tied_hf, parallel, 4)


def assert_parity(folder: Path, parallel: ParallelConfig, processes: int) -> None:
    report = run_ranks(_measure, processes, ParityConfig(model=str(folder), parallel=parallel))[0]
    for name in ("tower_max", "merger_max", "logits_max", "logprob_max"):
        assert report[name] < 1e-4, name
    for name in ("loss_relative", "grad_norm_relative"):
        assert report[name] < 1e-5, name
    assert report["passed"]


def test_a_wrong_weight_is_reported(tiny_hf: Path) -> None:
    report = run_ranks(_measure_with_changed_norm, 1, ParityConfig(model=str(tiny_hf)))[0]
    assert not report["passed"]
    assert report["tower_max"] < 1e-4 < report["logits_max"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "limit", "code"),
    [("tiny_hf", "1e-4", 0), ("tiny_hf", "1e-12", 1), ("nan_hf", "1e-4", 1)],
    ids=["right", "above the limit", "nan"],
)
def test_the_command_prints_json_and_its_exit_code_is_the_verdict(
    model: str, limit: str, code: int, request: pytest.FixtureRequest
) -> None:
    words = ["parity", str(request.getfixturevalue(model)), "--json", "--max-logit-diff", limit]
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *words], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == code, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] == (code == 0) and report["num_samples"] > 1


@pytest.fixture
def nan_hf(tiny_hf: Path, tmp_path: Path) -> Path:
    """The tiny model with one weight that is no number."""
    folder = tmp_path / "nan"
    shutil.copytree(tiny_hf, folder)
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_packed_samples_do_not_see_each_other(tiny_hf: Path) -> None:
    neighbour_changed, self_changed, packing_changed = run_ranks(_differences_of_neighbours, 1, str(tiny_hf))[
        0
    ]
    assert neighbour_changed == 0.0
    assert self_changed > 1e-2
    assert packing_changed < 2e-5


@pytest.mark.parametrize(("parallel", "processes"), [(ParallelConfig(), 1), (ParallelConfig(pp=2), 2)])
def test_every_parameter_gets_a_gradient_from_text_alone(
    tiny_hf: Path, parallel: ParallelConfig, processes: int
) -> None:
    results = run_ranks(_gradients_of_text, processes, str(tiny_hf), parallel)
    without = [name for names, _ in results for name in names]
    assert without == []
    assert results[0][1] == 0.0  # the vision tower's gradients, on the first stage


def test_checkpoint_keys_are_those_of_fused_norms(tiny_hf: Path) -> None:
    """Transformer Engine fuses norms into linears; checkpoints made here must load there."""
    keys = run_ranks(_checkpoint_keys, 1, str(tiny_hf))[0]
    for block in ("language_model", "vision_model"):
        assert f"{block}.decoder.layers.self_attention.linear_qkv.layer_norm_weight" in keys
        assert f"{block}.decoder.layers.mlp.linear_fc1.layer_norm_weight" in keys
    assert not any("input_layernorm" in key or "pre_mlp_layernorm" in key for key in keys)


def test_wrong_number_of_image_tokens_is_named(tiny_hf: Path) -> None:
    message = run_ranks(_forward_without_patches, 1, str(tiny_hf))[0]
    assert "0 patches" in message and "image tokens" in message


def _measure(config: ParityConfig) -> dict[str, Any]:
    from megatron_omr.parity import measure

    return asdict(measure(config, init_ranks(config.parallel)))


def _measure_with_changed_norm(config: ParityConfig) -> dict[str, Any]:
    from megatron_omr.parity import measure
    from megatron_omr.train import trainer

    load = trainer.load_hf

    def load_and_change(chunks, *args):
        load(chunks, *args)
        chunks[0].language_model.decoder.final_layernorm.weight.data[3] += 0.01

    trainer.load_hf = load_and_change
    return asdict(measure(config, init_ranks(config.parallel)))


def _build(folder: str, parallel: ParallelConfig):
    from megatron_omr.convert.load import load_hf
    from megatron_omr.model.build import build_model

    ranks, model = init_ranks(parallel), ModelConfig.from_hf(folder)
    chunks = build_model(model, parallel, ranks, precision="fp32")
    load_hf(chunks, folder, model, ranks)
    return ranks, model, chunks[0]


@torch.no_grad()
def _differences_of_neighbours(folder: str) -> tuple[float, float, float]:
    """Of the second and the first sample when the first one's images change; of both when they are packed."""
    from data_pipeline.loader.packing import merge
    from megatron_omr.oracle import random_example

    _, model, chunk = _build(folder, ParallelConfig())
    generator = torch.Generator().manual_seed(1)
    first, second = (random_example(model, name, 2, generator) for name in "ab")
    other = replace(first, pixels=255 - first.pixels)

    def logits(*examples):
        out = chunk(merge(examples, multiple=1, pad_token_id=0)).squeeze(1)
        return out.split([len(e) for e in examples])

    def difference(a, b):
        return float((a - b).abs().max())

    together, changed = logits(first, second), logits(other, second)
    alone = logits(first)[0], logits(second)[0]
    packing = max(difference(a, b) for a, b in zip(together, alone, strict=True))
    return difference(together[1], changed[1]), difference(together[0], changed[0]), packing


def _gradients_of_text(folder: str, parallel: ParallelConfig):
    from data_pipeline.loader.packing import merge
    from megatron_omr.oracle import random_example

    ranks, model, chunk = _build(folder, parallel)
    batch = merge([random_example(model, "a", 0, torch.Generator().manual_seed(1))], pad_token_id=0)
    if not ranks.is_first_stage:
        chunk.set_input_tensor(torch.randn(batch.num_tokens, 1, model.hidden_size))
    chunk(batch).sum().backward()
    without = [name for name, p in chunk.named_parameters() if p.grad is None]
    vision = (
        []
        if chunk.vision_model is None
        else [float(p.grad.abs().max()) for p in chunk.vision_model.parameters()]
    )
    return without, max(vision, default=0.0)


def _checkpoint_keys(folder: str) -> set[str]:
    *_, chunk = _build(folder, ParallelConfig())
    return {tensor.key for tensor in chunk.sharded_state_dict().values()}


def _forward_without_patches(folder: str) -> str:
    from data_pipeline.loader.packing import merge
    from megatron_omr.oracle import random_example

    _, model, chunk = _build(folder, ParallelConfig())
    example = random_example(model, "a", 1, torch.Generator().manual_seed(1))
    batch = merge([replace(example, pixels=example.pixels[:0])], pad_token_id=0)
    with pytest.raises(ValueError) as error:
        chunk(batch)
    return str(error.value)
