"""The benchmark for GPUs runs from beginning to end at a tiny size, and claims no utilisation of a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.files import read_json

ROOT = Path(__file__).parents[2]


def run_benchmark(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_train", *options]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.slow
def test_whole_benchmark_runs_without_a_gpu(tmp_path: Path) -> None:
    done = run_benchmark("--tiny", "--out", str(tmp_path / "result.json"))
    assert done.returncode == 0, done.stderr
    assert "fp8 blockwise, emulated:" in done.stdout and "% MFU" not in done.stdout
    result = read_json(tmp_path / "result.json")
    for kind in ("images", "text"):
        cases = result[kind]["ours"]
        assert "te goes with" in cases.pop("fp8 off, Transformer Engine's attention for windows")["refused"]
        assert set(cases) == set(result[kind]["times_transformers_speed"]) and len(cases) == 7
        for case in [*cases.values(), result[kind]["transformers"]]:
            assert case["seconds"] > 0 and case["mfu"] is case["mfu_fp8"] is case["peak_gib"] is None
        planned = {name: case["planned_gib"]["total"] for name, case in cases.items()}
        assert 0 < planned["fp8 off, all recomputed"] < planned["fp8 off"]
        phases = cases["fp8 off"]["phases"]
        assert min(phases.values()) > 0
        assert "fp8: mxfp8, emulated" in cases["fp8 mxfp8"]["backends"]


@pytest.mark.parametrize(("gib", "least", "most"), [(79.1, 12, 24), (139.8, 36, 36)])
def test_layers_fit_the_memory_of_a_gpu(gib: float, least: int, most: int) -> None:
    """With all activations kept, an H100 holds some of 3B's layers, and an H200 all 36."""
    from benchmarks.gpu_train import GPU_CASES, count_layers_that_fit
    from megatron_omr.plan.shapes import published_shape

    model = published_shape("Qwen2.5-VL-3B-Instruct")
    work = {"num_tokens": 8_192, "longest": 8_192, "image_side": 16}
    assert (
        least <= count_layers_that_fit(model, [GPU_CASES["fp8 tensorwise"]], int(gib * 2**30), **work) <= most
    )
