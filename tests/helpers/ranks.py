"""Functions on several gloo ranks: the launcher with a time limit, and the process groups of a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launch.ranks.launcher import rank_environment, run_local


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Calls fn(*args) on `world_size` ranks and returns their results.

    Raises:
        RankError: a rank raised or was killed, or the time ran out.
    """
    return run_local(fn, world_size, *args, timeout=timeout)


def init_ranks(parallel: Any, *, seed: int = 1234, world: str = "") -> Any:
    """Calls megatron_omr.parallel.initialize with the environment of this rank.

    Args:
        world: a name of its own for each world that the same ranks join one after the other.
    """
    from megatron_omr.parallel import initialize

    rank, world_size, init_method = rank_environment()
    address = f"{init_method}{world}"
    return initialize(parallel, rank=rank, world_size=world_size, init_method=address, seed=seed)
