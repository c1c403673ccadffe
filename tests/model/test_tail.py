"""The blank tail of a pack changes nothing: logprobs, loss and gradients are those without it, in every layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from data_pipeline.encode.prompt_sharing import share_prompt
from data_pipeline.loader.packing import merge
from data_pipeline.types import Example, PackedBatch, Tree
from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import run_ranks
from tests.helpers.trainers import tiny_trainer

pytestmark = pytest.mark.heavy


class Comparison(NamedTuple):
    """The same samples with two tails, on one rank."""

    tails: list[int]  # tokens
    logprob_gap: float  # largest difference; 0 without the last stage
    loss_gap: float  # relative
    grad_gap: float  # largest difference of any gradient, relative to the largest gradient


@pytest.mark.parametrize(
    ("parallel", "processes"),
    [(ParallelConfig(), 1), (ParallelConfig(tp=2, sp=True), 2), (ParallelConfig(cp=2), 2)],
    ids=["one process", "tp2 sp", "cp2"],
)
def test_a_tail_changes_nothing(tiny_hf: Path, parallel: ParallelConfig, processes: int) -> None:
    """A shared prompt is among the samples, except under context parallelism, which does not take any."""
    for seen in run_ranks(_compare_tails, processes, str(tiny_hf), parallel):
        without, with_tail = seen.tails
        assert without < parallel.pack_multiple() <= 16 < with_tail
        # other sizes of products round differently: 1e-6 and 1e-7 were seen, an attended pad is above 1e-2
        assert seen.logprob_gap < 2e-5
        assert seen.loss_gap < 1e-6
        assert seen.grad_gap < 2e-6


def _compare_tails(folder: str, parallel: ParallelConfig) -> Comparison:
    from megatron_omr.oracle import draw_example
    from megatron_omr.train.losses import sft_loss
    from megatron_omr.train.step import MicroBatch, forward_logprobs, train_step

    trainer = tiny_trainer(folder, parallel)
    generator = torch.Generator().manual_seed(11)
    items: list[Example | Tree] = [draw_example(trainer.model, str(n), n, generator) for n in range(3)]
    if parallel.cp == 1:
        prompt = draw_example(trainer.model, "prompt", 1, generator)
        tree = share_prompt(
            replace(prompt, loss_mask=torch.zeros(len(prompt))),
            {"short": [40, 41], "long": [50, 51, 52]},
            image_token_id=trainer.model.image_token_id,
            multiple=parallel.sequence_multiple,
        )
        assert tree is not None
        items.append(tree)
    found: list[tuple[list[Tensor], float, list[Tensor]]] = []
    packs = [
        merge(items, multiple=parallel.sequence_multiple, pack_multiple=multiple, pad_token_id=0)
        for multiple in (parallel.pack_multiple(), parallel.pack_multiple(128))
    ]
    weights = [p.detach().clone() for p in trainer.chunks[0].parameters()]
    for pack in packs:
        logprobs = [got[pack.loss_mask.bool()] for got in forward_logprobs(trainer, [pack])]
        step = train_step(trainer, [MicroBatch(packed=pack, loss=sft_loss)])
        found.append((logprobs, step.loss, [p.main_grad.clone() for p in trainer.chunks[0].parameters()]))
        with torch.no_grad():
            for parameter, weight in zip(trainer.chunks[0].parameters(), weights, strict=True):
                parameter.copy_(weight)
    (logprobs, loss, grads), (others, other_loss, other_grads) = found
    largest = max(float(grad.abs().max()) for grad in grads)
    return Comparison(
        tails=[_tail(pack) for pack in packs],
        logprob_gap=max(float((a - b).abs().max()) for a, b in zip(logprobs, others, strict=True)),
        loss_gap=abs(loss - other_loss) / loss,
        grad_gap=max(float((a - b).abs().max()) for a, b in zip(grads, other_grads, strict=True)) / largest,
    )


def _tail(pack: PackedBatch) -> int:
    blank = pack.real_lens == 0
    assert not blank[:-1].any()
    return int(pack.cu_seqlens.diff()[blank].sum())
