"""How the tokens of a step were spread over the experts, and the auxiliary loss that spreads them evenly.

Legend: L language layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr import cpu
from megatron_omr.model.moe.layer import routers
from megatron_omr.parallel import gather_over_replicas
from megatron_omr.train.losses import LossOutput
from megatron_omr.train.trainer import Trainer

PackedLoss = Callable[[Tensor, Tensor, PackedBatch], LossOutput]  # as MicroBatch has it


@dataclass(frozen=True, kw_only=True)
class ExpertUse:
    """What the routers counted in a step, over all ranks; empty of a model without experts."""

    load: list[list[int]] = field(default_factory=list)  # [L, E] tokens; a layer without experts has none
    metrics: dict[str, float] = field(default_factory=dict)


def set_balance(trainer: Trainer, batches: Sequence[tuple[PackedBatch, PackedLoss]]) -> None:
    """Gives the routers the factor of their auxiliary losses in this step. Collective over the data-parallel ranks.

    Gradients are divided by the global count of the loss in the end, whatever it counts: tokens or sequences. The
    auxiliary loss is a mean over tokens, so what the routers add for each token is multiplied by count / tokens.
    """
    if trainer.model.moe is None or not trainer.expert_balance:
        return
    count = 0.0
    for batch, loss in batches:
        packed = batch.without_pixels().to(cpu.device())
        zero_T = torch.zeros(packed.num_tokens, device=cpu.device())
        count += float(loss(zero_T, zero_T, packed).count)
    own = [count, float(sum(batch.num_real_tokens for batch, _ in batches))]
    counts, tokens = map(sum, zip(*gather_over_replicas(trainer.ranks, own), strict=True))
    for router in routers(trainer.chunks):
        router.balance = trainer.expert_balance * counts / max(tokens, 1.0)


def set_replay(trainer: Trainer, replays: bool) -> None:
    """Has the routers take the experts of PackedBatch.routed_experts, or only count where they would take others."""
    for router in routers(trainer.chunks):
        router.replays = replays


@torch.no_grad()
def take_expert_use(trainer: Trainer) -> ExpertUse:
    """Returns what the routers counted since the last call. Collective."""
    moe = trainer.model.moe
    if moe is None:
        return ExpertUse()
    counted = torch.zeros(
        trainer.model.num_layers, moe.num_experts + 4, dtype=torch.float64, device=cpu.device()
    )
    for router in routers(trainer.chunks):
        counted[cast("int", router.layer_number) - 1] = router.take_counts()
    dist.all_reduce(counted)  # each rank has tokens, or layers, of its own
    load, (balance, tokens, differing, compared) = counted[:, :-4], counted[:, -4:].T[:, list(moe.layers)]
    relative = load[list(moe.layers)]
    relative = relative / relative.mean(1, keepdim=True).clamp(min=1e-12)
    metrics = {
        "expert_load_max": float(relative.max()),
        "expert_load_min": float(relative.min()),
        "expert_load_max_mean": float(relative.max(1).values.mean()),
    }
    if tokens.sum():
        metrics["expert_balance"] = float((balance / tokens.clamp(min=1)).mean())
    if compared.sum():
        metrics["routing_difference"] = float(differing.sum() / compared.sum())
    rows = load.long().tolist()
    return ExpertUse(
        load=[row if layer in moe.layers else [] for layer, row in enumerate(rows)], metrics=metrics
    )
