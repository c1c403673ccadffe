"""Counts the static bytes of a rank on the real model: built on the meta device, as one rank of a fake world."""

from __future__ import annotations

import torch

from megatron_omr import cpu, parallel
from megatron_omr.config import OptimConfig, ParallelConfig
from megatron_omr.dtypes import Precision
from megatron_omr.model.build import build_model
from megatron_omr.model.parts import freeze
from megatron_omr.model.spec import choose_backend
from megatron_omr.model_config import ModelConfig
from megatron_omr.plan.weights import StaticBytes
from megatron_omr.swap.reference import Reference
from megatron_omr.train.optimizer import build_optimizer, list_buffers, wrap_chunks


def measure_static(
    model: ModelConfig,
    layout: ParallelConfig,
    *,
    world_size: int,
    rank: int,
    precision: Precision,
    optim: OptimConfig,
) -> StaticBytes:
    """Builds this rank's model, gradient buffers and optimizer, with every state, and counts their bytes.

    Nothing is allocated. About 0.3 s a rank, of any model and world. The process must be in no world.

    Raises:
        ValueError: the layout cannot hold the model, or there is a GPU.
    """
    choose_backend()  # asks for the device, so before it is another
    with cpu.sizes_only():
        ranks = parallel.initialize(layout, rank=rank, world_size=world_size, init_method="fake://", seed=0)
        try:
            parts = build_model(model, layout, ranks, precision=precision)
            freeze(parts, optim.freeze)
            chunks = wrap_chunks(parts, overlap=layout.overlap)
            optimizer, _ = build_optimizer(chunks, optim, steps=1)
        finally:
            parallel.shutdown()
    reference = Reference(chunks, "device")
    buffers = list_buffers(chunks)
    frozen = [p for part in parts for p in part.parameters() if not p.requires_grad]
    return StaticBytes(
        weights=sum(b.param_data.nbytes for b in buffers) + sum(p.nbytes for p in frozen),
        gradients=sum(b.grad_data.nbytes for b in buffers),
        optimizer=sum(
            _count_states(adam.optimizer, copies=precision == "bf16") for adam in optimizer.chained_optimizers
        ),
        reference=reference.nbytes,
    )


def _count_states(adam: torch.optim.Optimizer, *, copies: bool) -> int:
    """Returns the bytes of the moments, and of the parameters where these are `copies` and no views of the weights."""
    mains = [p for group in adam.param_groups for p in group["params"]]
    for main in mains:
        main.grad = torch.zeros_like(main)
    adam.step()
    states = [t for p in mains for t in adam.state[p].values()]
    return sum(t.nbytes for t in states + mains * copies)
