"""Builds Megatron's gradient buffers, distributed AdamW and its schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer import optimizer as megatron_optimizer
from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, ParamGroupOverride
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.utils import get_model_config
from torch import Tensor

from data_pipeline.types import PackedBatch
from megatron_omr.config import OptimConfig
from megatron_omr.model.parts import part_of
from megatron_omr.model_config import Part


def wrap_chunks(chunks: Sequence[MegatronModule], *, overlap: bool = False) -> list[DistributedDataParallel]:
    """Wraps model chunks in DDP with gradient buffers in fp32, sharded for the distributed optimizer.

    Args:
        overlap: reduce gradients, in buckets, during the last backward pass, and gather weights during the forward
            pass after a step: until then each rank holds only its own part of the new weights.
    """
    config = get_model_config(chunks[0])
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap,
        align_param_gather=overlap,  # modules wait for their weights; start_param_gathers starts the gathers
    )
    if config.bf16:
        chunks = [_BF16Chunk(config, chunk) for chunk in chunks]
    wrapped = [
        DistributedDataParallel(config, ddp, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]
    if overlap:  # gradients of all micro-batches but the last stay where they are
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = cast("Any", no_sync if len(no_sync) > 1 else no_sync[0])
    return wrapped


def start_param_gathers(chunks: Sequence[DistributedDataParallel]) -> None:
    """Starts to gather the weights of the last step where that is still to be done; modules wait for theirs.

    All at once and in one order: left to its modules, a rank without images would gather the tower's weights at
    another time than the others. Collective; without overlap there is nothing to do.
    """
    for chunk in chunks:
        for group in _overlapping_groups(chunk):
            if not group.param_gather_dispatched:
                group.start_param_sync()


def await_param_gathers(chunks: Sequence[DistributedDataParallel]) -> None:
    """Waits for the gathers that were started: also those of modules that had nothing to do, and did not wait."""
    for chunk in chunks:
        for group in _overlapping_groups(chunk):
            if group.param_gather_handle is not None:
                group.start_param_sync(force_sync=True)  # which only waits


def _overlapping_groups(chunk: DistributedDataParallel) -> list[Any]:
    if not chunk.ddp_config.overlap_param_gather:
        return []
    return [*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups]


def list_buffers(chunks: Sequence[DistributedDataParallel]) -> list[Any]:
    """Returns the buffers of weights and gradients: those of experts, which other ranks share, come last."""
    # Megatron hides the module's method of this name behind a list
    return [
        buffer
        for chunk in chunks
        for buffer in (*cast("list[Any]", chunk.buffers), *chunk.expert_parallel_buffers)
    ]


class _BF16Chunk(Float16Module):
    """Keeps the logits in bfloat16. The parent makes a float32 copy of them, the largest tensor of a step."""

    def forward(self, batch: PackedBatch) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.module(batch)


def build_optimizer(
    chunks: list[DistributedDataParallel], optim: OptimConfig, *, steps: int
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Returns AdamW over sharded fp32 states, without decay on norms and biases, and the schedule over `steps`."""
    model = get_model_config(chunks[0])
    config = OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        min_lr=optim.min_lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad,
        bf16=model.bf16,
        params_dtype=model.params_dtype,
        use_distributed_optimizer=True,
        overlap_param_gather=chunks[0].ddp_config.overlap_param_gather,
    )
    optimizer = get_megatron_optimizer(
        config,
        cast("list[MegatronModule]", chunks),
        get_standard_config_overrides(config) | _own_lrs(optim),
        use_gloo_process_groups=False,
    )
    model.finalize_model_grads_func = finalize_model_grads
    model.grad_scale_func = optimizer.scale_loss
    return optimizer, _build_scheduler(optimizer, optim, steps)


def _own_lrs(optim: OptimConfig) -> dict[ParamKey, ParamGroupOverride]:
    """Returns the groups of parameters with a learning rate of their own, whose schedule has the shape of `lr`'s."""

    def select(part: Part) -> ParamKey:
        is_in_part = ParamWithNamePredicate(name=part, fn=lambda parameter, name: part_of(name) == part)
        return ParamKey(with_name_predicate=is_in_part)

    overrides: dict[ParamKey, ParamGroupOverride] = {}
    for part, lr in optim.own_lrs.items():
        # lr_mult changes no learning rate: a resumed run finds its groups by it, and does not look at max_lr
        group = {"max_lr": lr, "min_lr": optim.min_lr * lr / optim.lr, "lr_mult": lr / optim.lr}
        overrides[select(part)] = cast("ParamGroupOverride", group)
    return overrides


def _build_scheduler(optimizer: MegatronOptimizer, optim: OptimConfig, steps: int) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=optim.lr,
        min_lr=optim.min_lr,
        lr_warmup_steps=optim.warmup_steps,
        lr_decay_steps=max(steps, optim.warmup_steps + 1),
        lr_decay_style=optim.schedule,
        start_wd=optim.weight_decay,
        end_wd=optim.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,  # a run may be made longer; other changes are refused on resume
    )


@torch.no_grad()
def step_if_finite(optimizer: MegatronOptimizer) -> tuple[float, bool]:
    """Clips and steps unless the global gradient norm is NaN or infinite; returns (norm, stepped).

    The norm is reduced over all ranks, so that all of them take the same branch.
    """
    found_inf = optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm())
    if found_inf or not math.isfinite(grad_norm):
        return grad_norm, False
    for part in optimizer.chained_optimizers:
        parameters = part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            megatron_optimizer.clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, grad_norm)
    return grad_norm, bool(optimizer.step_with_ready_grads())
