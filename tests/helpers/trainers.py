"""Small trainers and random micro-batches, for functions that `run_ranks` calls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from megatron_omr.config import ComputeConfig, OptimConfig, ParallelConfig
from megatron_omr.dtypes import Precision
from tests.helpers.ranks import init_ranks

if TYPE_CHECKING:  # these import Megatron, which only ranks should
    from megatron_omr.train.step import MicroBatch
    from megatron_omr.train.trainer import Trainer

OPTIM = OptimConfig(lr=1e-3, warmup_steps=0)


def tiny_trainer(folder: str, parallel: ParallelConfig, *, precision: Precision = "fp32") -> Trainer:
    """Joins the world and builds a trainer of the model in `folder`."""
    from megatron_omr.train.trainer import build_trainer

    return build_trainer(folder, parallel, init_ranks(parallel), OPTIM, precision=precision, steps=8)


def random_micro_batches(
    trainer: Trainer,
    parallel: ParallelConfig,
    *,
    seed: int,
    compute: ComputeConfig = ComputeConfig(),
    evenly: bool = True,
) -> list[MicroBatch]:
    """Returns this data-parallel rank's share of random samples that depend on `seed` only, padded for `compute`.

    Args:
        evenly: else all ranks but the last have one pack, and that one the rest.
    """
    from data_pipeline.loader.packing import merge
    from megatron_omr.oracle import draw_packs
    from megatron_omr.train.losses import sft_loss
    from megatron_omr.train.step import MicroBatch

    packs, rank, size = draw_packs(trainer.model, seed), trainer.ranks.dp_rank, trainer.ranks.dp_size
    last = rank + 1 if rank < size - 1 else len(packs)
    packs = packs[rank::size] if evenly else packs[rank:last]
    rows = compute.alignment(parallel)
    multiples = {"multiple": parallel.sequence_multiple, "pack_multiple": parallel.pack_multiple(rows)}
    batches = [merge(pack, **multiples, pad_token_id=0) for pack in packs]
    return [MicroBatch(packed=batch, loss=sft_loss) for batch in batches]


def exported(trainer: Trainer) -> dict[str, Tensor]:
    """Returns copies of the weights of this rank's replica under their Hugging Face names, on each of its ranks.

    Collective.
    """
    import torch.distributed as dist
    from megatron.core.parallel_state import get_model_parallel_group

    from megatron_omr.convert.export import stream
    from megatron_omr.train.trainer import unwrap_chunks

    first = replace(trainer.ranks, dp_rank=0, cp_rank=0)  # other replicas than rank 0's stream nothing
    weights = stream(replace(trainer.export_plan, ranks=first), unwrap_chunks(trainer))
    found = [{name: tensor.detach().clone() for name, tensor in weights}]
    group = get_model_parallel_group()
    dist.broadcast_object_list(found, src=dist.get_global_rank(group, 0), group=group)
    return found[0]
