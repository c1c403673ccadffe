"""Transformer Engine against the local layers, FP8 against BF16, images in packs, and checkpoints from and to CPU.

The bands are guesses: on an H200 all held, but that of fp8=tensorwise failed in one of three runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from megatron_omr.config import ComputeConfig, ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported, random_micro_batches

LOCAL, TE = ComputeConfig(backend="local"), ComputeConfig(backend="te")
ONE = ParallelConfig()


def _train(folder: str, compute: ComputeConfig, steps: int, out: str = "") -> list[tuple[float, float]]:
    """Returns loss and gradient norm of each step; saves a checkpoint and the weights in `out`."""
    from safetensors.torch import save_file

    from megatron_omr.checkpoint.save import save_checkpoint
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    ranks = init_ranks(ONE)
    trainer = build_trainer(folder, ONE, ranks, OPTIM, precision="bf16", steps=100, compute=compute)
    # the same samples again and again: they can be learned
    batches = [random_micro_batches(trainer, ONE, compute=compute, seed=seed) for seed in (1, 2)]
    results = [train_step(trainer, batches[step % 2]) for step in range(steps)]
    if out:
        save_checkpoint(trainer, Path(out), step=steps, state={}, template=folder, keep=1)
        save_file({name: t.cpu() for name, t in exported(trainer).items()}, f"{out}/weights.safetensors")
    return [(result.loss, result.grad_norm) for result in results]


@cache  # a process takes half a minute to start, and recipes are compared with the same BF16
def train(folder: Path, compute: ComputeConfig, steps: int, out: str = "") -> list[tuple[float, float]]:
    return run_ranks(_train, 1, str(folder), compute, steps, out, timeout=280)[0]


def test_transformer_engine_trains_as_the_local_layers(tiny_hf: Path) -> None:
    """Packs with several images, one, and none; whole frames and windows."""
    ours, theirs = train(tiny_hf, LOCAL, 4), train(tiny_hf, TE, 4)
    for (loss, norm), (other_loss, other_norm) in zip(ours, theirs, strict=True):
        assert other_loss == pytest.approx(loss, rel=0.01)
        assert other_norm == pytest.approx(norm, rel=0.05)


def test_attention_of_windows_is_a_choice_of_speed_alone(tiny_hf: Path) -> None:
    engine, mixed = (
        train(tiny_hf, ComputeConfig(backend="te", window_attention="te"), 2),
        train(tiny_hf, TE, 2),
    )
    assert [loss for loss, _ in mixed] == pytest.approx([loss for loss, _ in engine], rel=0.01)


@pytest.mark.parametrize("fp8", ["tensorwise", "blockwise", "mxfp8"])
def test_fp8_learns_as_bf16_does(tiny_hf: Path, fp8: Any) -> None:
    """Over 50 steps the losses stay within 0.3 of each other, while they fall by several times that."""
    import torch

    from megatron_omr.model.fp8 import find_fp8_problem

    cuda = tuple(map(int, str(torch.version.cuda).split(".")))
    if problem := find_fp8_problem(fp8, torch.cuda.get_device_capability(), cuda, "2.11.0"):
        pytest.skip(f"{fp8} {problem}")
    plain, rounded = train(tiny_hf, TE, 50), train(tiny_hf, ComputeConfig(fp8=fp8), 50)
    assert plain[0][0] - plain[-1][0] > 1
    assert plain != rounded
    apart = [abs(a - b) for (a, _), (b, _) in zip(plain, rounded, strict=True)]
    print(
        f"{fp8}: losses apart by {max(apart):.3f} at most, by {sum(apart[-10:]) / 10:.3f} in the last ten steps"
    )
    print(" ".join(f"{loss:.3f}/{other:.3f}" for (loss, _), (other, _) in zip(plain, rounded, strict=True)))
    assert max(apart) < 0.3
    assert sum(apart[-10:]) / 10 < 0.1


def load(folder: str, checkpoint: str, compute: ComputeConfig) -> bool:
    """Returns whether the loaded weights are those that the writer exported, and a step can follow."""
    import math

    from safetensors.torch import load_file

    from megatron_omr.checkpoint.load import load_checkpoint
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    trainer = build_trainer(folder, ONE, init_ranks(ONE), OPTIM, precision="bf16", steps=100, compute=compute)
    load_checkpoint(trainer, Path(checkpoint))
    wanted = load_file(Path(checkpoint).with_name("weights.safetensors"))
    same = all(bool((t.cpu() == wanted[name]).all()) for name, t in exported(trainer).items())
    result = train_step(trainer, random_micro_batches(trainer, ONE, compute=compute, seed=3))
    return same and math.isfinite(result.loss)


def on_cpu(call: str) -> None:
    """Runs a call of this module where CUDA is hidden, on the local path of CPUs."""
    code = f"from tests.gpu.test_training import *\nif __name__ == '__main__':\n    assert {call}"
    script = Path(os.environ["PYTEST_CPU_SCRIPT"])
    script.write_text(code)
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
    }
    subprocess.run([sys.executable, str(script)], cwd=root, env=environment, check=True, timeout=280)


@pytest.mark.parametrize("compute", [TE, ComputeConfig(fp8="tensorwise")], ids=["te", "fp8"])
def test_checkpoint_of_a_cpu_loads_on_a_gpu_and_back(
    tiny_hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: ComputeConfig
) -> None:
    monkeypatch.setenv("PYTEST_CPU_SCRIPT", str(tmp_path / "on_cpu.py"))
    for name in ("cpu", "gpu"):
        (tmp_path / name).mkdir()
    folder, written = Path(tiny_hf), {name: str(tmp_path / name / "step-00000002") for name in ("cpu", "gpu")}
    with ThreadPoolExecutor(1) as beside:  # each side writes, then each loads what the other wrote
        writing = beside.submit(on_cpu, f"train(Path({str(folder)!r}), LOCAL, 2, {str(tmp_path / 'cpu')!r})")
        train(folder, compute, 2, str(tmp_path / "gpu"))
        writing.result()
        loading = beside.submit(
            on_cpu, f"run_ranks(load, 1, {str(folder)!r}, {written['gpu']!r}, LOCAL) == [True]"
        )
        assert run_ranks(load, 1, str(folder), written["cpu"], compute) == [True]
        loading.result()


def _measure_memory(folder: str) -> tuple[int, int]:
    """Returns bytes on the GPU after a step, and those of weights, gradients and optimizer by the plan."""
    import torch

    from megatron_omr.plan.weights import Chunk, count_static, list_parameters
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer

    trainer = build_trainer(folder, ONE, init_ranks(ONE), OPTIM, precision="bf16", steps=100, compute=TE)
    train_step(trainer, random_micro_batches(trainer, ONE, seed=1))
    chunk = Chunk(num_layers=trainer.model.num_layers, first=True, last=True)
    planned = count_static([list_parameters(trainer.model, chunk, tp=1, pp=1)], element=2, num_shards=1)
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(), planned.total


def test_memory_between_steps_is_what_the_plan_counts(tiny_hf: Path) -> None:
    """And what the kernels keep for themselves, up to 256 MiB of workspaces."""
    ((used, planned),) = run_ranks(_measure_memory, 1, str(tiny_hf), timeout=280)
    assert planned <= used < planned * 1.1 + (256 << 20)
