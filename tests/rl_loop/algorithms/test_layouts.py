"""Every loss trains alike in every layout, micro-batching, pack length and padding: its gradients and the weights.

A run takes one step with each loss, off-policy, and with ratios that are clipped in part; most have a KL penalty, some
a correction for what older weights sampled.
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.loader.packing import build_blank, merge
from data_pipeline.types import Example, PackedBatch
from megatron_omr.config import ParallelConfig
from rl.algorithms.config import AlgorithmConfig, KLConfig
from rl.algorithms.policy_loss import POLICY_LOSSES, build_policy_loss
from rl.types import RolloutBatch
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported

pytestmark = pytest.mark.heavy

K1, K3 = (KLConfig(coefficient=0.1, estimator=estimator) for estimator in ("k1", "k3"))
STEPS = {name: AlgorithmConfig(name=name, kl=K3) for name in POLICY_LOSSES} | {
    "cispo": AlgorithmConfig(name="cispo", kl=K3, clip_high=0.5),  # as published nothing would be clipped
    "gspo, k1": AlgorithmConfig(name="gspo", kl=K1),
    "gspo, k1, sequence": AlgorithmConfig(name="gspo", kl=K1, correction="sequence", correction_high=1.05),
    "gspo_token, k1": AlgorithmConfig(
        name="gspo_token", kl=K1, correction="sequence_reject", correction_low=0.8, correction_high=1.2
    ),
    "grpo, k1": AlgorithmConfig(name="grpo", kl=K1, correction="token_reject"),
    "cispo, token": AlgorithmConfig(name="cispo", clip_high=0.5, correction="token", correction_high=1.2),
}


class Run(NamedTuple):
    steps: dict[str, dict[str, float]]  # loss, gradient norm and metrics
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def alone(tiny_tied_hf: Path) -> Run:
    return run_ranks(_train, 1, str(tiny_tied_hf), ParallelConfig(), "as drawn")[0]


@pytest.mark.parametrize(
    ("parallel", "processes", "packing"),
    [
        pytest.param(ParallelConfig(), 1, "one pack", id="one pack"),
        pytest.param(ParallelConfig(), 1, "padded", id="a pack each, padded"),
        pytest.param(ParallelConfig(tp=2, sp=True), 2, "as drawn", id="tp2 sp"),
        pytest.param(ParallelConfig(cp=2), 2, "as drawn", id="cp2"),
        pytest.param(ParallelConfig(pp=2), 2, "as drawn", id="pp2"),
        pytest.param(ParallelConfig(), 2, "as drawn", id="dp2"),
    ],
)
def test_steps_of_all_losses_equal_those_of_one_process(
    tiny_tied_hf: Path, alone: Run, parallel: ParallelConfig, processes: int, packing: str
) -> None:
    run = run_ranks(_train, processes, str(tiny_tied_hf), parallel, packing)[-1]  # of the last stage
    for name, wanted in alone.steps.items():
        assert wanted["norm"] > 1e-3, name
        assert run.steps[name] == pytest.approx(wanted, rel=1e-5), name  # seen: 1e-6; for weights 7e-6
    for name, tensor in alone.weights.items():
        if name.endswith(".weight"):  # biases of keys have no gradient, so theirs follow rounding
            gap = np.linalg.norm(run.weights[name] - tensor) / np.linalg.norm(tensor)
            assert gap < 1e-4, name


def test_ratios_are_clipped_in_part(alone: Run) -> None:
    shares = {name: step["clip_fraction"] for name, step in alone.steps.items() if name != "sapo"}
    assert all(0.05 < share < 0.6 for share in shares.values()), shares
    assert alone.steps["sapo"]["gate"] < 0.99
    bounded = [
        step[name]
        for step in alone.steps.values()
        for name in ("correction_truncated", "correction_rejected")
        if name in step
    ]
    assert len(bounded) == 4 and all(0.02 < share < 0.98 for share in bounded), bounded


def _train(folder: str, parallel: ParallelConfig, packing: str) -> Run:
    from megatron_omr.oracle import draw_packs
    from megatron_omr.train.step import MicroBatch, train_step
    from megatron_omr.train.trainer import build_trainer

    ranks = init_ranks(parallel)
    trainer = build_trainer(folder, parallel, ranks, OPTIM, precision="fp32", steps=len(STEPS))
    steps = {}
    for seed, (name, config) in enumerate(STEPS.items()):
        packs = _pack(draw_packs(trainer.model, seed)[:3], parallel, packing)
        own = packs[ranks.dp_rank :: ranks.dp_size] or _pack([[]], parallel, packing)
        loss = build_policy_loss(config, max_tokens=40)

        def evaluate(logprobs_T: Tensor, entropy_T: Tensor, packed: PackedBatch, loss: Any = loss) -> Any:
            return loss(logprobs_T, _attach(logprobs_T.detach(), packed))

        result = train_step(trainer, [MicroBatch(packed=pack, loss=evaluate) for pack in own])
        steps[name] = {"loss": result.loss, "norm": result.grad_norm, **result.metrics}
    return Run(steps=steps, weights={name: tensor.numpy() for name, tensor in exported(trainer).items()})


def _pack(packs: list[list[Example]], parallel: ParallelConfig, packing: str) -> list[PackedBatch]:
    multiple, pack_multiple = parallel.sequence_multiple, parallel.pack_multiple()
    if packing == "one pack":
        packs = [[example for pack in packs for example in pack]]
    elif packing == "padded":
        packs, multiple, pack_multiple = [[example] for pack in packs for example in pack], 32, 64
    multiples = {"multiple": multiple, "pack_multiple": pack_multiple}
    return [
        merge(pack, **multiples, pad_token_id=0) if pack else build_blank(**multiples, pad_token_id=0)
        for pack in packs
    ]


def _attach(logprobs_T: Tensor, packed: PackedBatch) -> RolloutBatch:
    """Returns advantages, and policies near the current one, which depend on a response's name and tokens alone.

    Some responses are solutions, and some tokens of the others are stale.
    """
    parts = {
        name: torch.zeros_like(logprobs_T) for name in ("advantages", "old", "rollout", "reference", "fresh")
    }
    stale_T = torch.zeros_like(logprobs_T, dtype=torch.bool)
    for name, (start, end) in zip(packed.ids, pairwise(packed.cu_seqlens.tolist()), strict=True):
        response = start + packed.loss_mask[start:end].nonzero().flatten()
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parts["advantages"][response] = torch.randn((), generator=generator)
        shift = 0.3 * torch.randn(
            (), generator=generator
        )  # of the whole response, so that its ratio is not 1
        for policy, size in (("old", 0.5), ("rollout", 0.1), ("reference", 0.4)):
            noise = shift + size * torch.randn(len(response), generator=generator)
            parts[policy][response] = logprobs_T[response] + noise
        if torch.rand((), generator=generator) < 0.8:  # not a solution
            is_stale = torch.rand(len(response), generator=generator) < 0.5
            parts["fresh"][response], stale_T[response] = (~is_stale).float(), is_stale
    return RolloutBatch(
        packed=packed,
        advantages_T=parts["advantages"],
        old_logprobs_T=parts["old"],
        rollout_logprobs_T=parts["rollout"],
        reference_logprobs_T=parts["reference"],
        fresh_T=parts["fresh"],
        stale_T=stale_T,
    )
