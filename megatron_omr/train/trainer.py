"""Builds what one rank trains with: model chunks in gradient buffers, optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module

from megatron_omr.config import ComputeConfig, OptimConfig, ParallelConfig
from megatron_omr.convert.export import ExportPlan, plan_export
from megatron_omr.convert.load import load_hf
from megatron_omr.dtypes import Precision
from megatron_omr.model.build import build_model
from megatron_omr.model.parts import freeze
from megatron_omr.model_config import ModelConfig, Part
from megatron_omr.parallel import Ranks
from megatron_omr.train.backends import Backends, name_backends
from megatron_omr.train.optimizer import (
    await_param_gathers,
    build_optimizer,
    start_param_gathers,
    wrap_chunks,
)


@dataclass(kw_only=True)
class Trainer:
    """One rank's model, optimizer and schedule, and its place in the layout."""

    model: ModelConfig
    parallel: ParallelConfig
    ranks: Ranks
    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    backends: Backends
    frozen: tuple[Part, ...] = ()
    expert_balance: float = 0.0

    @cached_property
    def export_plan(self) -> ExportPlan:
        """The one plan of the run's exports: weight syncs, saves and parity checks. The first use is collective."""
        return plan_export(unwrap_chunks(self), self.model, self.ranks)


def build_trainer(
    folder: str,
    parallel: ParallelConfig,
    ranks: Ranks,
    optim: OptimConfig,
    *,
    precision: Precision,
    steps: int,
    compute: ComputeConfig = ComputeConfig(),
    resumes: bool = False,
) -> Trainer:
    """Builds the model of a Hugging Face folder with its weights, AdamW, and the schedule over `steps`. Collective.

    Args:
        resumes: leave the weights unset, because a checkpoint will be loaded.

    Raises:
        ValueError: the layout cannot hold the model, the folder's tensors do not fit its config.json, or this machine
            cannot compute as `compute` says.
    """
    model = ModelConfig.from_hf(folder)
    chunks = build_model(model, parallel, ranks, precision=precision, compute=compute)
    if not resumes:
        load_hf(chunks, folder, model, ranks)
    freeze(chunks, optim.freeze)
    wrapped = wrap_chunks(chunks, overlap=parallel.overlap)
    optimizer, scheduler = build_optimizer(wrapped, optim, steps=steps)
    return Trainer(
        model=model,
        parallel=parallel,
        ranks=ranks,
        chunks=wrapped,
        optimizer=optimizer,
        scheduler=scheduler,
        frozen=optim.freeze,
        expert_balance=optim.expert_balance,
        backends=name_backends(chunks, optimizer, compute),
    )


def unwrap_chunks(trainer: Trainer) -> list[torch.nn.Module]:
    """Returns the model chunks without their DDP and precision wrappers, for conversion and checkpoints.

    Their weights are whole: with `parallel.overlap` this ends the gathers of the last step. Collective.
    """
    start_param_gathers(trainer.chunks)
    await_param_gathers(trainer.chunks)
    chunks = [c.module.module if isinstance(c.module, Float16Module) else c.module for c in trainer.chunks]
    return cast("list[torch.nn.Module]", chunks)
