"""Training in every layout: three steps and logprobs equal those of one process, with and without recomputation.

The steps have four, three and one micro-batch, so that some replicas see text only or nothing but a blank, and the
interleaved schedule has to be filled with blanks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from megatron_omr.config import ComputeConfig, ParallelConfig
from tests.conftest import make_tiny
from tests.helpers.ranks import init_ranks, run_ranks
from tests.helpers.trainers import OPTIM, exported

if TYPE_CHECKING:
    from torch import Tensor

    from data_pipeline.types import PackedBatch

pytestmark = pytest.mark.heavy

PACKS = ((0, 4), (0, 3), (3, 4))  # of the four that a seed draws; their images: 0 1 2, 0 0, 2 1, 3
PLAIN = ComputeConfig()
MLP, FULL = ComputeConfig(recompute="mlp"), ComputeConfig(recompute="full", recompute_vision="full")


class Run(NamedTuple):
    steps: list[tuple[float, float, dict[str, float], float]]  # loss, gradient norm, metrics, learned tokens
    weights: dict[str, np.ndarray]
    logprobs: list[np.ndarray]  # of the tokens that are to be learned, of each pack
    deallocates: bool


@pytest.fixture(scope="module")
def alone(tiny_tied_hf: Path) -> Run:
    return run_ranks(_train, 1, str(tiny_tied_hf), ParallelConfig(), PLAIN)[0]


@pytest.mark.parametrize(
    ("parallel", "processes", "compute"),
    [
        pytest.param(ParallelConfig(tp=2), 2, PLAIN, id="tp2"),
        pytest.param(ParallelConfig(tp=2, sp=True), 2, FULL, id="tp2 sp, all recomputed"),
        pytest.param(ParallelConfig(pp=2), 2, MLP, id="pp2, mlp recomputed"),
        pytest.param(ParallelConfig(pp=2, layers=(1, 3)), 2, PLAIN, id="pp2 uneven"),
        pytest.param(ParallelConfig(pp=2, vp=2), 2, PLAIN, id="pp2 vp2"),
        pytest.param(ParallelConfig(pp=2, vp=2), 2, FULL, id="pp2 vp2, all recomputed"),
        pytest.param(ParallelConfig(cp=2), 2, PLAIN, id="cp2"),
        pytest.param(ParallelConfig(), 2, PLAIN, id="dp2"),
        pytest.param(ParallelConfig(tp=2, pp=2), 4, PLAIN, id="tp2 pp2", marks=pytest.mark.slow),
        pytest.param(
            ParallelConfig(pp=2, cp=2), 4, FULL, id="pp2 cp2, all recomputed", marks=pytest.mark.slow
        ),
        pytest.param(
            ParallelConfig(tp=2, pp=2, vp=2, sp=True), 4, PLAIN, id="tp2 pp2 vp2 sp", marks=pytest.mark.slow
        ),
        pytest.param(ParallelConfig(pp=2, vp=2), 4, PLAIN, id="dp2 pp2 vp2", marks=pytest.mark.slow),
        pytest.param(
            ParallelConfig(pp=2, vp=2, overlap=True),
            4,
            PLAIN,
            id="dp2 pp2 vp2 overlap",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_three_steps_equal_those_of_one_process(
    tiny_tied_hf: Path, alone: Run, parallel: ParallelConfig, processes: int, compute: ComputeConfig
) -> None:
    check_equal(run_ranks(_train, processes, str(tiny_tied_hf), parallel, compute), alone)


@pytest.mark.slow
def test_deeper_pipelines_too(tmp_path: Path) -> None:
    folder = str(make_tiny(tmp_path, tied=False, num_layers=8))
    alone = run_ranks(_train, 1, folder, ParallelConfig(), PLAIN)[0]
    for parallel in (ParallelConfig(pp=4, vp=2), ParallelConfig(pp=2, vp=4), ParallelConfig(pp=3, vp=2)):
        check_equal(run_ranks(_train, parallel.pp, folder, parallel, PLAIN), alone)


def check_equal(runs: list[Run], alone: Run) -> None:
    last = runs[-1]  # of the last stage
    for (loss, norm, metrics, learned), wanted in zip(last.steps, alone.steps, strict=True):
        # seen: 2e-7 and 4e-7; for weights 6e-6, for logprobs 1e-5
        assert loss == pytest.approx(wanted[0], rel=1e-5)
        assert norm == pytest.approx(wanted[1], rel=1e-5)
        assert metrics.keys() == {f"logprob_{suffix}" for suffix in ("min", "p01", "p50", "p99", "max")}
        assert metrics == pytest.approx(wanted[2], rel=1e-4)  # logprobs of single tokens, seen: 4e-6
        assert learned == wanted[3]
    for name, tensor in alone.weights.items():
        if name.endswith(".weight"):  # biases of keys have no gradient, so theirs follow rounding
            gap = np.linalg.norm(last.weights[name] - tensor) / np.linalg.norm(tensor)
            assert gap < 1e-4, name
    for logprobs, wanted in zip(last.logprobs, alone.logprobs, strict=True):
        assert logprobs.shape == wanted.shape and np.abs(logprobs - wanted).max() < 2e-4
    assert not any(run.deallocates for run in runs)  # gloo may still be reading a sent tensor


def _train(folder: str, parallel: ParallelConfig, compute: ComputeConfig) -> Run:
    from megatron.core.utils import get_model_config

    from data_pipeline.loader.packing import build_blank, merge
    from megatron_omr.oracle import draw_packs
    from megatron_omr.train.losses import LossOutput, sft_loss
    from megatron_omr.train.step import MicroBatch, forward_logprobs, train_step
    from megatron_omr.train.trainer import build_trainer

    ranks = init_ranks(parallel)
    trainer = build_trainer(folder, parallel, ranks, OPTIM, precision="fp32", steps=8, compute=compute)
    multiples = {"multiple": parallel.sequence_multiple, "pack_multiple": parallel.pack_multiple()}

    def draw(seed: int, start: int, stop: int) -> list[Any]:
        packs = draw_packs(trainer.model, seed)[start:stop]
        return [merge(pack, **multiples, pad_token_id=0) for pack in packs]

    def loss(logprobs_T: Tensor, entropy_T: Tensor, packed: PackedBatch) -> LossOutput:
        output = sft_loss(logprobs_T, entropy_T, packed)
        return replace(output, samples={"logprob": logprobs_T.detach()[packed.loss_mask > 0]})

    steps = []
    for seed, bounds in enumerate(PACKS):
        own = draw(seed, *bounds)[ranks.dp_rank :: ranks.dp_size]
        own = own or [build_blank(**multiples, pad_token_id=0)]
        result = train_step(trainer, [MicroBatch(packed=pack, loss=loss) for pack in own])
        steps.append((result.loss, result.grad_norm, result.metrics, result.work.num_learned))
    packs = draw(9, 0, 3)
    logprobs = [
        values[pack.loss_mask > 0].numpy()
        for values, pack in zip(forward_logprobs(trainer, packs), packs, strict=bool(ranks.is_last_stage))
    ]
    return Run(
        steps=steps,
        weights={name: tensor.numpy() for name, tensor in exported(trainer).items()},
        logprobs=logprobs,
        deallocates=get_model_config(trainer.chunks[0]).deallocate_pipeline_outputs,
    )
