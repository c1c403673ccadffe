"""Builds the process groups of a layout and gives each process its ranks in them.

The sole caller of megatron.core.parallel_state. Also defines the zigzag: the tokens of a packed batch that each
context-parallel rank holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_omr import cpu
from megatron_omr.config import FaultConfig, ParallelConfig

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


COLLECTIVE_TIMEOUT = FaultConfig().collective_timeout


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place in every dimension of the layout."""

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    dp_rank: int
    dp_size: int
    ep_rank: int
    ep_size: int
    etp_rank: int
    etp_size: int
    edp_rank: int  # among ranks that hold the same part of the same experts

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def is_first_of_replica(self) -> bool:
        """True on one rank of each data-parallel replica."""
        return self.tp_rank == self.pp_rank == self.cp_rank == 0

    @property
    def is_logger(self) -> bool:
        """True on the one rank whose losses and metrics are written."""
        return self.is_last_stage and self.tp_rank == self.cp_rank == self.dp_rank == 0

    def tp_group(self) -> ProcessGroup:
        return _group(parallel_state.get_tensor_model_parallel_group())

    def pp_group(self) -> ProcessGroup:
        return _group(parallel_state.get_pipeline_model_parallel_group())

    def cp_group(self) -> ProcessGroup:
        return _group(parallel_state.get_context_parallel_group())

    def dp_group(self) -> ProcessGroup:
        """Returns the replicas with different data."""
        return _group(parallel_state.get_data_parallel_group())

    def dp_cp_group(self) -> ProcessGroup:
        """Returns the ranks over which gradients are summed."""
        return _group(parallel_state.get_data_parallel_group(with_context_parallel=True))

    def expert_group(self) -> ProcessGroup:
        """Returns ranks that hold a stage's experts once: the ETP ranks of the first EP rank, then of the next."""
        return _group(parallel_state.get_expert_tensor_and_model_parallel_group())


def _group(group: Any) -> ProcessGroup:
    assert isinstance(group, dist.ProcessGroup), f"no such group: {group}"
    return group


def initialize(
    config: ParallelConfig,
    *,
    rank: int,
    world_size: int,
    init_method: str,
    seed: int,
    timeout: timedelta = COLLECTIVE_TIMEOUT,
) -> Ranks:
    """Joins the world, builds the groups and seeds the generators of this process.

    Args:
        init_method: the address of the rendezvous, e.g. "file:///path", "tcp://127.0.0.1:29500" or "env://".
        timeout: longest wait for the others, here and in every later operation.

    Raises:
        ValueError: `world_size` is no multiple of tp x pp x cp and of etp x ep x pp, or this machine has fewer GPUs
            than ranks.
    """
    dp_size = config.dp(world_size)
    cpu.check_prepared()
    cpu.claim_device()
    dist.init_process_group(
        cpu.distributed_backend(), init_method=init_method, rank=rank, world_size=world_size, timeout=timeout
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tp,
        pipeline_model_parallel_size=config.pp,
        virtual_pipeline_model_parallel_size=config.vp if config.vp > 1 else None,
        context_parallel_size=config.cp,
        expert_model_parallel_size=config.ep,
        expert_tensor_parallel_size=config.expert_tp,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=cast("int", timeout.total_seconds() / 60),  # any number will do
    )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
    return Ranks(
        rank=rank,
        world_size=world_size,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=config.tp,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=config.pp,
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=config.cp,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=dp_size,
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
        ep_size=config.ep,
        etp_rank=cast("int", parallel_state.get_expert_tensor_parallel_rank()),
        etp_size=config.expert_tp,
        edp_rank=parallel_state.get_expert_data_parallel_rank(),
    )


def wait_for_all() -> None:
    """Returns when all ranks have called it. Collective."""
    dist.barrier()


def shutdown() -> None:
    """Leaves the world; a later `initialize` may join another."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def union_of_ranks(ids: set[str]) -> set[str]:
    """Returns the union of all ranks' `ids`. Collective."""
    gathered: list[set[str]] = [set() for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, ids)
    return set().union(*gathered)


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Returns the sums over all ranks. Collective."""
    sums = torch.tensor(values, dtype=torch.float64, device=cpu.device())
    dist.all_reduce(sums)
    return sums.tolist()


def gather_over_replicas(ranks: Ranks, values: Sequence[float]) -> list[list[float]]:
    """Returns the values of each data-parallel replica. Collective."""
    own = torch.tensor(values, dtype=torch.float64, device=cpu.device())
    gathered = own.new_empty(ranks.dp_size, len(values))
    dist.all_gather(list(gathered.unbind(0)), own, group=ranks.dp_group())
    return gathered.tolist()


def zigzag_order(cu_seqlens: Tensor, cp_size: int) -> Tensor:
    """Returns the tokens of a packed batch that each context-parallel rank holds, in order.

    Every sequence is cut into 2 * cp_size equal chunks; rank r holds its chunks r and 2 * cp_size - 1 - r, so
    that causal attention costs every rank the same.

    Args:
        cu_seqlens: [S + 1] int32; every length a multiple of 2 * cp_size when cp_size > 1.

    Returns:
        [cp_size, T / cp_size] int64: token positions by rank.

    Raises:
        ValueError: a length is no multiple of 2 * cp_size.
    """
    num_tokens = int(cu_seqlens[-1])
    tokens = torch.arange(num_tokens, device=cu_seqlens.device)
    if cp_size == 1:
        return tokens[None]
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    num_chunks = 2 * cp_size
    if bool((lengths % num_chunks).any()):
        raise ValueError(
            f"sequence lengths {lengths.tolist()} must be multiples of {num_chunks} for "
            f"parallel.cp={cp_size}; pack with multiple=ParallelConfig.sequence_multiple"
        )
    start_T = starts.repeat_interleave(lengths, output_size=num_tokens)
    chunk_len_T = (lengths // num_chunks).repeat_interleave(lengths, output_size=num_tokens)
    chunk_T = (tokens - start_T) // chunk_len_T
    owner_T = torch.minimum(chunk_T, num_chunks - 1 - chunk_T)
    return torch.sort(owner_T, stable=True).indices.view(cp_size, -1)
