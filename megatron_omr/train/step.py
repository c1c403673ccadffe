"""The one optimizer step of SFT and RL; the loss is an argument.

A loss returns a sum and a count (of tokens for SFT, of sequences for GSPO); gradients are divided by the count
over *all* micro-batches of *all* ranks, so that neither packing nor the layout changes any weight:
grad = sum_r sum_m d loss_sum[r, m] / sum_r sum_m count[r, m].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from data_pipeline.loader.packing import build_blank
from data_pipeline.types import PackedBatch
from megatron_omr import cpu
from megatron_omr.flops import peak_flops, train_step_flops
from megatron_omr.parallel import Ranks, gather_over_replicas
from megatron_omr.train.experts import set_balance, take_expert_use
from megatron_omr.train.logprobs import token_logprobs
from megatron_omr.train.losses import LossOutput
from megatron_omr.train.optimizer import await_param_gathers, start_param_gathers, step_if_finite
from megatron_omr.train.quantiles import global_quantiles
from megatron_omr.train.trainer import Trainer

_ALIGNMENT = 128
"""Blank packs are a multiple of this many tokens a rank, which suits every backend and precision."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Input of one forward and backward pass: packed tokens, and a loss of their logprobs."""

    packed: PackedBatch  # on the host: it moves to this rank's device when it is its turn
    loss: Callable[
        [Tensor, Tensor, PackedBatch], LossOutput
    ]  # (logprobs_T, entropy_T, packed) -> sums, on the device
    with_entropy: bool = False  # otherwise entropy_T is zero, which saves a pass over the logits


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step computed, over all data-parallel ranks."""

    num_tokens: float  # without padding
    num_learned: float  # of these tokens
    padding: float  # share of the computed tokens that are padding
    flops: float  # of the model, see flops.py
    excess: float  # of the rank with most FLOPs over the mean of ranks, relative: how long the others wait


@dataclass(frozen=True, kw_only=True)
class StepResult:
    loss: float  # global mean; 0 on ranks without the last pipeline stage
    grad_norm: float
    lr: float  # used by this step
    skipped: bool  # the gradient was NaN or infinite and nothing was changed
    work: Work
    metrics: dict[str, float] = field(
        default_factory=dict
    )  # global means and quantiles; empty without the last stage
    expert_load: list[list[int]] = field(default_factory=list)  # tokens of each expert of each layer


def train_step(
    trainer: Trainer, micro_batches: Sequence[MicroBatch], *, temperature: float = 1.0
) -> StepResult:
    """Runs forward, backward and optimizer step over this data-parallel rank's micro-batches (at least one).

    Ranks of the same model-parallel group must pass the same micro-batches; data-parallel ranks may
    differ in number and size.
    """
    for chunk in trainer.chunks:
        chunk.zero_grad_buffer()
    trainer.optimizer.zero_grad()
    set_balance(trainer, [(m.packed, m.loss) for m in micro_batches])
    lr = trainer.scheduler.get_lr({})  # of the language model: a group of another part may be the first
    outputs = _run(trainer, micro_batches, temperature=temperature, forward_only=False)
    grad_norm, stepped = step_if_finite(trainer.optimizer)
    if stepped:
        trainer.scheduler.step(increment=1)
    work = _measure_work(trainer, [m.packed for m in micro_batches])
    metrics = _global_means(trainer.ranks, outputs) if trainer.ranks.is_last_stage else {}
    quantiles = global_quantiles(trainer.ranks, outputs) if trainer.ranks.is_last_stage else {}
    experts = take_expert_use(trainer)
    return StepResult(
        loss=metrics.pop("loss", 0.0),
        grad_norm=grad_norm,
        lr=lr,
        skipped=not stepped,
        work=work,
        metrics=metrics | quantiles | (experts.metrics if trainer.ranks.is_last_stage else {}),
        expert_load=experts.load,
    )


def summarize_step(result: StepResult, seconds: float, world_size: int) -> dict[str, float]:
    """Returns the values to log of a step, with model FLOPs utilisation where the device's peak is known."""
    values = {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "tokens_per_second": result.work.num_tokens / seconds,
        "step_seconds": seconds,
        "padding": result.work.padding,
        "excess": result.work.excess,
        **result.metrics,
    }
    peak = peak_flops(cpu.device_name())
    return values if peak is None else values | {"mfu": result.work.flops / seconds / (peak * world_size)}


@torch.no_grad()
def forward_logprobs(
    trainer: Trainer, batches: Sequence[PackedBatch], *, temperature: float = 1.0
) -> list[Tensor]:
    """Returns logprobs of each batch's labels, [T] float32 on the host; an empty list without the last stage."""
    logprobs: list[Tensor] = []

    def keep(logprobs_T: Tensor, entropy_T: Tensor, packed: PackedBatch) -> LossOutput:
        logprobs.append(logprobs_T.cpu())
        zero = logprobs_T.new_zeros(())
        return LossOutput(loss_sum=zero, count=zero, metrics={})

    micro_batches = [MicroBatch(packed=batch, loss=keep) for batch in batches]
    _run(trainer, micro_batches, temperature=temperature, forward_only=True)
    return logprobs


@torch.no_grad()
def forward_loss(trainer: Trainer, steps: Iterable[Sequence[MicroBatch]]) -> float:
    """Returns the global mean loss of all micro-batches of all steps; 0 on ranks without the last pipeline stage.

    Every rank must pass as many steps, each with at least one micro-batch. No weight, gradient or count changes.
    """
    outputs: list[LossOutput] = []
    for micro_batches in steps:
        outputs += _run(trainer, micro_batches, temperature=1.0, forward_only=True)
    return _global_means(trainer.ranks, outputs)["loss"] if trainer.ranks.is_last_stage else 0.0


def _run(
    trainer: Trainer, micro_batches: Sequence[MicroBatch], *, temperature: float, forward_only: bool
) -> list[LossOutput]:
    """Runs all micro-batches; returns the loss outputs (last stage only)."""
    ranks = trainer.ranks
    outputs: list[LossOutput] = []

    def reduce_loss(number: int, packed: PackedBatch, logits: Tensor) -> tuple[Tensor, Tensor]:
        micro_batch = micro_batches[number]
        logprobs_T, entropy_T = token_logprobs(
            logits, packed, ranks, temperature=temperature, with_entropy=micro_batch.with_entropy
        )
        output = micro_batch.loss(logprobs_T, entropy_T, packed)
        outputs.append(output)
        # every CP rank computes the whole loss; only one of them may count it
        return output.loss_sum, output.count if ranks.cp_rank == 0 else torch.zeros_like(output.count)

    run_schedule(trainer, [m.packed for m in micro_batches], reduce_loss, forward_only=forward_only)
    return outputs


def run_schedule(
    trainer: Trainer,
    packs: Sequence[PackedBatch],
    reduce: Callable[[int, PackedBatch, Tensor], tuple[Tensor, Tensor]],
    *,
    forward_only: bool,
) -> None:
    """Runs Megatron's schedule for this layout over `packs`, which move to the device one at a time.

    Args:
        reduce: turns the number of a pack, the pack on the device and its logits into (loss sum, count); last stage
            only.
    """
    if not packs:
        raise ValueError("a rank got no micro-batch; raise the batch size to at least one sample a rank")
    num_packs, packs, chunks = len(packs), _fill_rounds(trainer, packs), trainer.chunks

    def forward_step(numbers: Iterator[int], chunk: torch.nn.Module):
        number = next(numbers)
        has_tower = chunk is chunks[0] and trainer.ranks.is_first_stage
        pack = packs[number] if has_tower else packs[number].without_pixels()
        packed = pack.to(cpu.device())

        def loss(logits: Tensor) -> tuple[Tensor, Tensor, dict]:
            if number >= num_packs:  # a blank one
                return logits[:0].sum(), torch.zeros((), dtype=torch.int, device=logits.device), {}
            loss_sum, count = reduce(number, packed, logits)
            return loss_sum, count.to(torch.int), {}

        return chunk(packed), loss

    iterators = [iter(range(len(packs))) for _ in chunks]
    start_param_gathers(trainer.chunks)
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=cast("list[torch.nn.Module]", chunks),
        num_microbatches=len(packs),
        seq_length=max(pack.num_tokens for pack in packs),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    await_param_gathers(trainer.chunks)


def _fill_rounds(trainer: Trainer, packs: Sequence[PackedBatch]) -> Sequence[PackedBatch]:
    """Returns `packs`, and blank ones where others wait for them. Collective over replicas that may share experts.

    Replicas that share experts send each other tokens in every layer, so all of them take as many packs; with several
    chunks a stage, the schedule takes packs in rounds of pp.
    """
    layout, ranks, count = trainer.parallel, trainer.ranks, len(packs)
    if ranks.ep_size * ranks.etp_size > ranks.tp_size:
        count = int(max(number for (number,) in gather_over_replicas(ranks, [count])))
    if layout.vp > 1:
        count += -count % layout.pp
    num_blank = count - len(packs)
    multiples = {"multiple": layout.sequence_multiple, "pack_multiple": layout.pack_multiple(_ALIGNMENT)}
    return [*packs, *[build_blank(**multiples, pad_token_id=0)] * num_blank]


def _measure_work(trainer: Trainer, packs: Sequence[PackedBatch]) -> Work:
    """Returns the work of a step with this rank's `packs`. Collective over the data-parallel ranks."""
    flops = sum(
        train_step_flops(
            trainer.model,
            p.real_lens.tolist(),
            p.image_grid_thw.tolist(),
            p.prefix_lens().tolist(),
            freeze=trainer.frozen,
        )
        for p in packs
    )
    counts = [(p.num_real_tokens, float(p.loss_mask.sum()), p.num_tokens) for p in packs]
    by_rank = gather_over_replicas(trainer.ranks, [flops, *map(sum, zip(*counts, strict=True))])
    total, num_tokens, num_learned, num_computed = map(sum, zip(*by_rank, strict=True))
    largest = max(flops for flops, *_ in by_rank)
    return Work(
        num_tokens=num_tokens,
        num_learned=num_learned,
        padding=1 - num_tokens / num_computed,
        flops=total,
        excess=largest * len(by_rank) / total - 1 if total else 0.0,
    )


def _global_means(ranks: Ranks, outputs: Sequence[LossOutput]) -> dict[str, float]:
    """Returns sums over micro-batches and data-parallel ranks, divided by their counts. Last stage only.

    What was counted nowhere has no mean; the loss is then 0.
    """
    names = sorted(outputs[0].metrics)
    sums = torch.zeros(len(names) + 1, 2, dtype=torch.float64)
    for output in outputs:
        pairs = [(output.loss_sum, output.count), *(output.metrics[name] for name in names)]
        sums += torch.tensor([[total.item(), count.item()] for total, count in pairs], dtype=torch.float64)
    sums = sums.to(cpu.device())
    dist.all_reduce(sums, group=ranks.dp_group())
    return {
        name: total / max(count, 1e-12)
        for name, (total, count) in zip(["loss", *names], sums.tolist(), strict=True)
        if count or name == "loss"
    }
