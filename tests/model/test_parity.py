"""Our model in every layout against transformers, on the same random weights, texts and images."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from megatron_omr.config import ParallelConfig, ParityConfig
from tests.helpers.ranks import init_ranks, rank_environment, run_ranks

pytestmark = pytest.mark.heavy

LAYOUTS = {
    "one process": (ParallelConfig(), 1),
    "tp2": (ParallelConfig(tp=2), 2),
    "tp2 sp": (ParallelConfig(tp=2, sp=True), 2),
    "pp2": (ParallelConfig(pp=2), 2),
    "cp2": (ParallelConfig(cp=2), 2),
    "dp2": (ParallelConfig(), 2),
    "pp2 vp2": (ParallelConfig(pp=2, vp=2), 2),
    "pp2 uneven": (ParallelConfig(pp=2, layers=(1, 3)), 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_untied_model_equals_transformers(tiny_hf: Path, layout: str) -> None:
    assert_parity(tiny_hf, *LAYOUTS[layout])


@pytest.mark.parametrize("layout", ["one process", "tp2 sp", "pp2", "pp2 vp2", "dp2"])
def test_tied_model_equals_transformers(tiny_tied_hf: Path, layout: str) -> None:
    assert_parity(tiny_tied_hf, *LAYOUTS[layout])


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(tp=2, pp=2, sp=True),
        ParallelConfig(pp=2, cp=2),
        ParallelConfig(tp=2, pp=2, vp=2, sp=True),
        ParallelConfig(pp=2, vp=2, cp=2, layers=(1, 1, 1, 1)),
        ParallelConfig(pp=4),
    ],
    ids=["tp2 pp2 sp", "pp2 cp2", "tp2 pp2 vp2 sp", "pp2 vp2 cp2", "pp4"],
)
def test_combined_layouts_equal_transformers(tiny_tied_hf: Path, parallel: ParallelConfig) -> None:
    assert_parity(tiny_tied_hf, parallel, 4)


def assert_parity(folder: Path, parallel: ParallelConfig, processes: int) -> None:
    report = run_ranks(_measure, processes, ParityConfig(model=str(folder), parallel=parallel))[0]
    # the command's limits: over ten times the rounding that any layout showed (8e-6), a fiftieth of a small mistake
    for name in ("tower_max", "merger_max", "logits_max", "logprob_max"):
        assert report[name] < 1e-4, name
    for name in ("loss_relative", "grad_norm_relative"):
        assert report[name] < 1e-5, name
    assert report["passed"] and (report["weights_max"], report["weights_worst"]) == (0, "")


def test_wrong_weight_is_reported(tiny_hf: Path) -> None:
    report = run_ranks(_measure_with_changed_norm, 1, ParityConfig(model=str(tiny_hf)))[0]
    assert not report["passed"]
    assert report["tower_max"] < 1e-4 < report["logits_max"]
    assert report["weights_max"] == pytest.approx(0.01, rel=1e-3)
    assert report["weights_worst"] == "model.language_model.norm.weight"


def test_wrong_name_of_an_exported_weight_is_reported(tiny_hf: Path) -> None:
    """Logits hide it: gate and up projection of a layer are exported under each other's name."""
    report = run_ranks(_measure_with_swapped_names, 1, ParityConfig(model=str(tiny_hf)))[0]
    assert not report["passed"]
    assert report["logits_max"] < 1e-4 and report["weights_max"] > 0
    assert report["weights_worst"].startswith("model.language_model.layers.1.mlp.")


def test_command_prints_json_and_exits_with_the_result(tiny_hf: Path) -> None:
    words = ["parity", str(tiny_hf), "--json", "--max-logit-diff", "1e-12"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *words], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["passed"] and report["num_samples"] > 1


@pytest.mark.parametrize(("model", "passes"), [("tiny_hf", True), ("nan_hf", False)])
def test_result_is_printed_as_json_with_nan_too(
    model: str, passes: bool, request: pytest.FixtureRequest
) -> None:
    ((result, text),) = run_ranks(_print_parity, 1, str(request.getfixturevalue(model)))
    assert json.loads(text)["passed"] == result == passes


def _print_parity(folder: str) -> tuple[bool, str]:
    from megatron_omr.parity import run_parity

    rank, world_size, init_method = rank_environment()
    with redirect_stdout(io.StringIO()) as out:
        config = ParityConfig(model=folder, json=True)
        result = run_parity(config, rank=rank, world_size=world_size, init_method=init_method)
    return result, out.getvalue()


@pytest.fixture
def nan_hf(tiny_hf: Path, tmp_path: Path) -> Path:
    """The tiny model with one NaN weight."""
    folder = tmp_path / "nan"
    shutil.copytree(tiny_hf, folder)
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _measure(config: ParityConfig) -> dict[str, Any]:
    from megatron_omr.parity import measure

    return asdict(measure(config, init_ranks(config.parallel)))


def _measure_with_swapped_names(config: ParityConfig) -> dict[str, Any]:
    from megatron_omr.convert import export
    from megatron_omr.parity import measure

    build = export.build_rules

    def build_and_swap(model):
        name = "language_model.decoder.layers.1.mlp.linear_fc1.weight"
        return [replace(rule, hf=rule.hf[::-1]) if rule.megatron == name else rule for rule in build(model)]

    export.build_rules = build_and_swap
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
