"""The zigzag of context parallelism, and the limits of what ranks wait for."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from launch.ranks.launcher import rank_environment
from megatron_omr.config import ParallelConfig
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.heavy


def test_zigzag_gives_each_rank_a_head_and_a_tail() -> None:
    run_ranks(_check_zigzag, 1)


def _check_zigzag() -> None:
    from megatron_omr.parallel import zigzag_order

    cu_seqlens = torch.tensor([0, 4, 12], dtype=torch.int32)
    assert zigzag_order(cu_seqlens, 2).tolist() == [[0, 3, 4, 5, 10, 11], [1, 2, 6, 7, 8, 9]]
    assert zigzag_order(cu_seqlens, 1).tolist() == [list(range(12))]
    with pytest.raises(ValueError, match="multiples of 8"):
        zigzag_order(cu_seqlens, 4)


def test_no_group_waits_longer_than_the_limit() -> None:
    """The whole world, Megatron's groups, and that of ranks which share batches."""
    waits, _ = run_ranks(_wait_in_vain, 2)
    assert waits.keys() == {"world", "tp", "peers"}
    assert all(1 <= seconds < 10 for seconds in waits.values()), waits


def _wait_in_vain() -> dict[str, float]:
    """Returns the seconds after which operations of each group fail, on rank 0: rank 1 takes part in none."""
    from megatron_omr.parallel import initialize
    from megatron_omr.train.peers import find_peers

    rank, world_size, init_method = rank_environment()
    limit = timedelta(seconds=1)
    ranks = initialize(
        ParallelConfig(tp=2), rank=rank, world_size=world_size, init_method=init_method, seed=0, timeout=limit
    )
    peers = find_peers(ranks, limit)
    assert peers is not None
    waits = {}
    for name, group in {"world": None, "tp": ranks.tp_group(), "peers": peers.group}.items():
        if rank == 1:
            time.sleep(1.5)
            continue
        began = time.monotonic()
        with pytest.raises(RuntimeError, match="(?i)timed out"):
            dist.all_reduce(torch.ones(1), group=group)
        waits[name] = time.monotonic() - began
    return waits
