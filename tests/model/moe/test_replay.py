"""Routers that take experts which others chose, in each layout, against transformers' model forced to the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.types import Example, PackedBatch
from megatron_omr.config import ComputeConfig, OptimConfig, ParallelConfig
from tests.helpers.ranks import init_ranks, run_ranks

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]

LAYERS, EXPERTS, CHOSEN = 4, 8, 2  # of the model
AGAIN, MLP_AGAIN = ComputeConfig(recompute="full"), ComputeConfig(recompute="mlp")
LAYOUTS: dict[str, tuple[ParallelConfig, ComputeConfig]] = {
    "ep2": (ParallelConfig(ep=2), MLP_AGAIN),
    "tp2 ep2": (ParallelConfig(tp=2, sp=True, ep=2, etp=1), AGAIN),
    "pp2": (ParallelConfig(pp=2, layers=(2, 2)), MLP_AGAIN),
    "cp2 ep2": (ParallelConfig(cp=2, ep=2), AGAIN),
}


def test_replayed_experts_are_those_of_transformers(tiny_moe_hf: Path) -> None:
    wanted, own = (_run_transformers(str(tiny_moe_hf), forced=forced) for forced in (True, False))
    assert max(abs(a / b - 1) for a, b in zip(wanted, own, strict=True)) > 1e-2
    found = run_ranks(_run_layouts, 2, str(tiny_moe_hf))[1]  # the last rank is on the last stage
    for name, (loss, grad_norm, difference) in zip(LAYOUTS, found, strict=True):
        assert (loss, grad_norm) == pytest.approx(wanted, rel=1e-5), name
        assert 0.9 < difference < 1, name  # of 28 pairs of experts random ones agree once


def _draw_experts(example: Example) -> Tensor:
    """Returns [tokens, LAYERS, CHOSEN]; the last token has none."""
    generator = torch.Generator().manual_seed(int(example.input_ids.sum()))
    drawn = torch.rand(len(example), LAYERS, EXPERTS, generator=generator).topk(CHOSEN).indices
    drawn[-1] = -1
    return drawn


def _run_transformers(folder: str, *, forced: bool) -> tuple[float, float]:
    """Returns loss and norm of the gradient, which holds that of the routers."""
    from megatron_omr.model_config import ModelConfig
    from megatron_omr.oracle import Oracle, draw_packs

    oracle = Oracle(folder)
    layers = oracle._model.model.language_model.layers
    samples = [[example] for pack in draw_packs(ModelConfig.from_hf(folder), 0) for example in pack]
    experts: list[Tensor] = []

    def force(layer: int, gate: Any, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        logits, _, own = output
        chosen = experts[0][:, layer]
        chosen = chosen.where(chosen >= 0, own)
        weights = logits.softmax(1).gather(1, chosen)
        return logits, weights / weights.sum(1, keepdim=True), chosen

    if forced:
        for number, layer in enumerate(layers):
            layer.mlp.gate.register_forward_hook(lambda *call, number=number: force(number, *call))
    count, loss = 0.0, 0.0
    for sample in samples:
        experts[:] = [_draw_experts(sample[0])]
        own = oracle.run([sample])
        count, loss = count + own, loss + oracle.loss * own
    norms = [p.grad.norm() for p in oracle.weights().values() if p.grad is not None]
    return loss / count, float(torch.stack(norms).norm()) / count


def _run_layouts(folder: str) -> list[tuple[float, float, float]]:
    from megatron_omr.parallel import shutdown

    found = []
    for number, (parallel, compute) in enumerate(LAYOUTS.values()):
        ranks = init_ranks(parallel, world=str(number))
        found.append(_train(folder, parallel, compute, ranks))
        shutdown()
    return found


def _train(
    folder: str, parallel: ParallelConfig, compute: ComputeConfig, ranks: Any
) -> tuple[float, float, float]:
    from dataclasses import replace

    from megatron_omr.oracle import draw_packs
    from megatron_omr.train.step import train_step
    from megatron_omr.train.trainer import build_trainer
    from tests.helpers.trainers import random_micro_batches

    optim = OptimConfig(lr=1e-3, warmup_steps=0)
    trainer = build_trainer(folder, parallel, ranks, optim, precision="fp32", steps=1, compute=compute)
    samples = {sample.id: sample for pack in draw_packs(trainer.model, 0) for sample in pack}
    batches = [
        replace(batch, packed=replace(batch.packed, routed_experts=_lay(batch.packed, samples)))
        for batch in random_micro_batches(trainer, parallel, seed=0)
    ]
    result = train_step(trainer, batches)
    return result.loss, result.grad_norm, result.metrics.get("routing_difference", 0.0)


def _lay(packed: PackedBatch, samples: dict[str, Example]) -> Tensor:
    experts = torch.full((packed.num_tokens, LAYERS, CHOSEN), -1, dtype=torch.int16)
    for name, (start, _) in zip(packed.ids, pairwise(packed.cu_seqlens.tolist()), strict=True):
        if name:
            experts[start:][: len(samples[name])] = _draw_experts(samples[name]).short()
    return experts
