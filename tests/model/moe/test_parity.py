"""A model with experts in each layout against transformers: logits, gradients, and three steps of AdamW."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from megatron_omr.config import ComputeConfig, OptimConfig, ParallelConfig, ParityConfig
from tests.conftest import make_tiny
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

Layout = tuple[ParallelConfig, ComputeConfig]
Case = tuple[str, ParallelConfig, ComputeConfig]
STEPS = 3
OPTIM = OptimConfig(lr=1e-3, warmup_steps=0, schedule="constant", beta2=0.95, clip_grad=1.0)
LOCAL = ComputeConfig(backend="local")
AGAIN, MLP_AGAIN = ComputeConfig(recompute="full"), ComputeConfig(recompute="mlp")
ONE: dict[str, Layout] = {"one process": (ParallelConfig(), LOCAL)}
TWO: dict[str, Layout] = {
    "ep2": (ParallelConfig(ep=2), LOCAL),
    "tp2 ep2": (ParallelConfig(tp=2, sp=True, ep=2, etp=1), LOCAL),
    "pp2": (ParallelConfig(pp=2, layers=(2, 2)), MLP_AGAIN),
    "cp2 ep2": (ParallelConfig(cp=2, ep=2), AGAIN),
}
FOUR: dict[str, Layout] = {
    "pp2 vp2 ep2 dp2": (ParallelConfig(pp=2, vp=2, ep=2), AGAIN),
    "tp2 ep2 dp2": (ParallelConfig(tp=2, sp=True, ep=2, etp=1), LOCAL),  # two ranks hold each expert
}
Steps = list[tuple[float, float]]  # loss and gradient norm


@pytest.fixture(scope="module")
def wanted(tiny_moe_hf: Path) -> Steps:
    return _train_transformers(str(tiny_moe_hf))


def test_models_train_as_transformers_in_one_process(
    tiny_moe_hf: Path, tiny_mixed_hf: Path, wanted: Steps
) -> None:
    """The second model is tied, and has an MLP among the layers of experts."""
    mixed = str(tiny_mixed_hf)
    _check_layouts(ONE, 1, {str(tiny_moe_hf): wanted, mixed: _train_transformers(mixed)})


def test_model_on_two_ranks_trains_as_transformers(tiny_moe_hf: Path, wanted: Steps) -> None:
    _check_layouts(TWO, 2, {str(tiny_moe_hf): wanted})


def test_model_on_four_ranks_trains_as_transformers(tmp_path: Path) -> None:
    """One level of features, so that each of four chunks needs no more than a layer."""
    sizes = {"head_dim": 48, "deepstack_visual_indexes": (1,)}
    folder = str(make_tiny(tmp_path / "model", tied=False, family="qwen3_vl_moe", **sizes))
    _check_layouts(FOUR, 4, {folder: _train_transformers(folder)})


def _check_layouts(layouts: dict[str, Layout], size: int, wanted: dict[str, Steps]) -> None:
    """Compares the model of each folder of `wanted` in each layout."""
    cases = [(folder, name) for folder in wanted for name in layouts]
    found = run_ranks(_measure, size, [(folder, *layouts[name]) for folder, name in cases], timeout=600)
    for number, (folder, name) in enumerate(cases):
        report, _ = found[0][number]
        assert report["passed"], (folder, name, report)
        _, steps = found[-1][number]  # the last rank is on the last stage
        for step, (one, other) in enumerate(zip(wanted[folder], steps, strict=True)):
            assert other == pytest.approx(one, rel=1e-5), f"{folder}, {name}, step {step}"


def _measure(cases: list[Case]) -> list[tuple[dict[str, Any], Steps]]:
    from megatron_omr.parallel import shutdown
    from megatron_omr.parity import measure

    found = []
    for number, (folder, parallel, compute) in enumerate(cases):
        ranks = init_ranks(parallel, world=str(number))
        report = measure(ParityConfig(model=folder, parallel=parallel, compute=compute), ranks)
        found.append((asdict(report), _train(folder, parallel, compute, ranks)))
        shutdown()
    return found


def _train(folder: str, parallel: ParallelConfig, compute: ComputeConfig, ranks: Any) -> Steps:
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer
    from tests.helpers.trainers import random_micro_batches

    trainer = build_trainer(folder, parallel, ranks, OPTIM, precision="fp32", steps=STEPS, compute=compute)
    results = []
    for seed in range(STEPS):  # in the second step one replica of two has a pack, and the other three
        batches = random_micro_batches(trainer, parallel, seed=seed, evenly=seed != 1)
        results.append(train_step(trainer, batches))
    return [(result.loss, result.grad_norm) for result in results]


def _train_transformers(folder: str) -> Steps:
    import torch

    from megatron_omr.model_config import ModelConfig
    from megatron_omr.oracle import Oracle, draw_packs

    model, oracle = ModelConfig.from_hf(folder), Oracle(folder)
    parameters = list(oracle.weights().values())
    adam = torch.optim.AdamW(
        parameters, lr=OPTIM.lr, betas=(OPTIM.beta1, OPTIM.beta2), eps=OPTIM.eps, weight_decay=0
    )
    found = []
    for seed in range(STEPS):
        adam.zero_grad()
        count = oracle.run(draw_packs(model, seed))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= count
        torch.nn.utils.clip_grad_norm_(parameters, OPTIM.clip_grad)
        adam.step()
        found.append((oracle.loss, oracle.grad_norm))
    return found
