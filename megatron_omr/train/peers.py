"""Reads a rank's batches, or takes those of a peer: a rank of the same replica on the same machine.

Ranks that differ only in their tensor-, context- or pipeline-parallel rank need the same batches, so one of them reads,
decodes and packs; the others map its memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from data_pipeline.encode.chat import ChatEncoder
from data_pipeline.errors import REASONS, name_counts
from data_pipeline.loader.loader import Loader
from data_pipeline.loader.sharing import BatchesPlace, SharedBatches, open_batches
from data_pipeline.types import PackedBatch
from megatron_omr import cpu, parallel
from megatron_omr.config import SFTConfig
from megatron_omr.flops import build_cost_model
from megatron_omr.parallel import Ranks
from megatron_omr.train.stop import StopRequest
from megatron_omr.train.trainer import Trainer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Peers:
    """The ranks of a replica on this machine, more than one; the first of them reads."""

    group: ProcessGroup
    reader: int  # its rank in the world

    @property
    def is_reader(self) -> bool:
        return dist.get_rank() == self.reader

    def share(self, read: Callable[[], tuple[list[PackedBatch], T]]) -> tuple[list[PackedBatch], T]:
        """Returns what `read` returns on the reader, which alone calls it. Collective over the peers.

        Where `read` raises, the reader ends, and the others with it: their connection closes.
        """
        message: list[tuple[BatchesPlace, T] | None] = [None]
        own = None
        if self.is_reader:
            batches, rest = read()
            own = batches if isinstance(batches, SharedBatches) else SharedBatches(batches)
            message = [(own.place, rest)]
        dist.broadcast_object_list(message, src=self.reader, group=self.group)
        assert message[0] is not None
        place, rest = message[0]
        opened = open_batches(place) if own is None else own
        dist.barrier(group=self.group)  # all have opened it
        if own is not None:
            own.close()
        return opened, rest


def find_peers(ranks: Ranks, timeout: timedelta) -> Peers | None:
    """Returns this rank's peers, which wait for each other at most `timeout`; None where it has none. Collective."""
    places: list[tuple[int, str]] = [(0, "")] * ranks.world_size
    dist.all_gather_object(places, (ranks.dp_rank, _processes_seen()))
    own = None
    for place in sorted(set(places)):
        members = [rank for rank, other in enumerate(places) if other == place]
        if len(members) == 1:
            continue
        group = dist.new_group(
            members, timeout=timeout, backend="gloo"
        )  # every rank takes part in making every group
        if ranks.rank in members:
            assert isinstance(group, ProcessGroup)
            own = Peers(group=group, reader=members[0])
    return own


def _processes_seen() -> str:
    """Names the processes that this one can see in /proc: those of one machine, or of one container there.

    Names of hosts may be the same on several machines.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")


def build_loader(config: SFTConfig, trainer: Trainer) -> Loader:
    """Returns the loader of this data-parallel rank, with the model's own chat template."""
    ranks = trainer.ranks
    encoder = ChatEncoder.from_hf(config.model, config.image)
    return Loader(
        config.loader,
        encoder,
        dp_rank=ranks.dp_rank,
        dp_size=ranks.dp_size,
        multiple=config.parallel.sequence_multiple,
        pack_multiple=config.parallel.pack_multiple(config.compute.alignment(config.parallel)),
        cost=build_cost_model(trainer.model, config.optim.freeze),
        pin=cpu.pins_memory(),
        peers=find_peers(ranks, config.fault.collective_timeout),
    )


def exchange(loader: Loader, ranks: Ranks, stop: StopRequest) -> tuple[dict[str, float], bool]:
    """Returns metrics of all samples skipped since the ranks began, and whether any rank is asked to stop. Collective.

    One reduction for both: signals reach the ranks at different steps, and all must stop after the same one.
    """
    own = [float(ranks.is_first_of_replica and loader.skipped[reason]) for reason in REASONS]
    *counts, asked = parallel.sum_over_ranks([*own, float(stop.is_made())])
    return name_counts("skipped_samples", dict(zip(REASONS, counts, strict=True))), asked > 0
