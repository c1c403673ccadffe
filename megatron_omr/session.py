"""Makes this process a rank of a training run: its process groups, its signs of life, and how it is asked to stop."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.failures import RankError, find_cause
from megatron_omr import parallel
from megatron_omr.config import SFTConfig
from megatron_omr.faults.heartbeat import Heartbeat, Watch, read_failures
from megatron_omr.parallel import Ranks
from megatron_omr.train.run_folder import claim_run
from megatron_omr.train.stop import StopRequest, hold_stop


@dataclass(frozen=True, kw_only=True)
class Session:
    """A rank's place in a run that goes on."""

    ranks: Ranks
    heart: Heartbeat
    stop: StopRequest


@contextmanager
def join_run(config: SFTConfig, *, rank: int, world_size: int, init_method: str) -> Iterator[Session]:
    """Joins the other ranks, and leaves when all have come to the end of the block. Collective.

    Raises:
        OSError, ValueError: as parallel.initialize and claim_run.
        RankError: another rank was the first to fail, which says why.
    """
    run = Path(config.run)
    with _names_the_first(run, rank, world_size), hold_stop() as stop:
        ranks = parallel.initialize(
            config.parallel,
            rank=rank,
            world_size=world_size,
            init_method=init_method,
            seed=config.seed,
            timeout=config.fault.collective_timeout,
        )
        watch = Watch(run, config.fault, rank=rank, world_size=world_size)
        with Heartbeat(run, config.fault, rank=rank, watch=watch) as heart:
            if rank == 0:
                claim_run(config, run)
            yield Session(ranks=ranks, heart=heart, stop=stop)
            parallel.wait_for_all()  # a launcher may end the others when the first one ends
        parallel.shutdown()


@contextmanager
def _names_the_first(run: Path, rank: int, world_size: int) -> Iterator[None]:
    """Says that another rank failed instead of what its closed connections raise here.

    Where run_local started the ranks, it does that.
    """
    try:
        yield
    except RuntimeError:
        if multiprocessing.parent_process() is not None:
            raise
        failures = read_failures(
            run, world_size
        )  # the first has said so before it ended, and with it its connections
        # else this rank failed before it gave a sign, and the files are of an earlier start
        is_told = any(one.rank == f"rank {rank}" and time.time_ns() - one.time < 60e9 for one in failures)
        if not is_told or (cause := find_cause(failures)).rank == f"rank {rank}":
            raise
        raise RankError(f"rank {rank} ended because {cause.rank} had failed") from None
