"""Weights broadcast from the trainer's rank 0 to every process of the engines: gloo between CPUs, NCCL between GPUs.

The group is of these processes alone. It is opened anew, under the next generation number, when its members change or
after a transfer broke; the processes find each other through a store at the trainer's address.
"""

from __future__ import annotations

import contextlib
import socket
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, PrefixStore, TCPStore, Work

from megatron_omr import cpu
from rl.weight_sync.layout import BUCKET_BYTES, Bucket, Layout, Piece, WeightError, read_layout
from rl.weight_sync.writing import write_weights

AHEAD = 2
"""Pieces on their way while another is filled, or checked and loaded."""


@dataclass(frozen=True, kw_only=True)
class CollectivePlace:
    """The address and members of a group."""

    host: str
    port: int
    timeout: float  # seconds, for all to come, and then for each piece
    layout: Layout
    generation: int = 0
    num_ranks: int = 1
    first_rank: int = 0  # of an engine's processes; the trainer has 0


class CollectiveSender:
    """Broadcasts a model's weights."""

    def __init__(self, layout: Layout, *, host: str, timeout: float) -> None:
        """Opens the store at `host`, an address of this machine that all engines reach, and there alone."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as server:
            port = server.getsockname()[1]
            self._store = TCPStore(
                host,
                port,
                is_master=True,
                timeout=timedelta(seconds=timeout),
                wait_for_workers=False,
                master_listen_fd=server.detach(),
            )
        self._layout, self._group = layout, None
        self.place = CollectivePlace(host=host, port=port, timeout=timeout, layout=layout)
        size = max(piece.end - piece.start for bucket in layout.buckets for piece in bucket.pieces())
        self._ring = [torch.empty(size, dtype=torch.uint8, device=cpu.device()) for _ in range(AHEAD)]
        self._sent: deque[Work] = deque()

    def join(self, generation: int, num_ranks: int) -> None:
        """Opens the group of this generation with the engines' processes, which join at the same time.

        Raises:
            WeightError: not all came in time.
        """
        self._group = None
        with _as_weight_error("the engines did not all come"):
            self._group = _open(self._store, self.place, generation, num_ranks, rank=0)

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Broadcasts `weights` while the engines receive; afterwards all have them.

        Raises:
            WeightError: an engine does not receive; the group is of no more use.
            ValueError: there are fewer or more tensors than planned.
        """
        assert self._group is not None, "join first"
        self._sent.clear()
        try:
            write_weights(weights, self._layout, self)
            while self._sent:
                self._wait()
        except BaseException:
            self._group = None
            raise

    def reserve(self, bucket: Bucket, piece: Piece) -> Tensor:
        if len(self._sent) == AHEAD:
            self._wait()
        self._ring.append(self._ring.pop(0))
        return self._ring[-1][: piece.end - piece.start]

    def publish(self, bucket: Bucket, piece: Piece) -> None:
        self._sent.append(_broadcast(self._group, self._ring[-1][: piece.end - piece.start]))

    def close(self) -> None:
        """Leaves the group and closes the store."""
        self._sent.clear()
        self._group = None
        del self._store

    def _wait(self) -> None:
        with _as_weight_error("an engine did not receive the weights"):
            self._sent.popleft().wait()


class CollectiveReader:
    """An engine process's end of the broadcasts of one group."""

    def __init__(self, place: CollectivePlace, *, rank: int) -> None:
        """Joins the group of the place as process `rank` of this engine.

        Raises:
            WeightError: not all came in time, or the trainer is gone.
        """
        self._place, self._buffers = place, _Buffers()
        with _as_weight_error("the trainer or another engine did not come"):
            store = TCPStore(
                place.host,
                place.port,
                is_master=False,
                timeout=timedelta(seconds=place.timeout),
                wait_for_workers=False,
            )
            self._group = _open(store, place, place.generation, place.num_ranks, rank=place.first_rank + rank)

    def receive(self, version: int) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the next broadcast, each after its bucket was checked, while the next ones arrive.

        Raises:
            WeightError: a bucket was corrupted (all are received nevertheless: the others need this process), or
                nothing came for `timeout` seconds.
        """
        coming = (
            (bucket, memory, piece)
            for bucket in self._place.layout.buckets
            for memory in [self._buffers.lend(bucket.num_bytes)]
            for piece in bucket.pieces()
        )
        posted: deque[tuple[Bucket, Tensor, Piece, Work]] = deque()

        def post(count: int) -> None:
            for bucket, memory, piece in islice(coming, count):
                posted.append(
                    (bucket, memory, piece, _broadcast(self._group, memory[piece.start : piece.end]))
                )

        corrupted: WeightError | None = None
        post(AHEAD)
        while posted:
            bucket, memory, piece, work = posted.popleft()
            with _as_weight_error("the weights did not arrive"):
                work.wait()
            post(1)
            if piece.end < bucket.num_bytes or corrupted:
                continue
            try:
                bucket.check(memory)
            except WeightError as error:
                corrupted = error
            else:
                yield from bucket.views(memory)
        if corrupted:
            raise corrupted

    def confirm(self, version: int) -> None:
        """Does nothing: nobody writes into what was received."""

    def close(self) -> None:
        """Leaves the group."""
        self._group = None


class _Buffers:
    """Memory for buckets, used again once no view of it is left: new pages cost more time than what they hold."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def lend(self, num_bytes: int) -> Tensor:
        """Returns uint8 memory on the device; a layer whose other tensors are to come may keep views of it."""
        if cpu.device() == "cuda":  # torch keeps a GPU's memory itself
            return torch.empty(num_bytes, dtype=torch.uint8, device=cpu.device())
        fitting = [memory for memory in self._free if len(memory) >= num_bytes]
        memory = min(fitting, key=len, default=None)
        if memory is None:
            memory = np.empty(max(num_bytes, 2 * BUCKET_BYTES), dtype=np.uint8)
        self._free = [free for free in self._free if free is not memory]
        lent = memory[:num_bytes]
        weakref.finalize(lent, self._give_back, memory)
        return torch.from_numpy(lent)

    def _give_back(self, memory: np.ndarray) -> None:
        self._free.append(memory)


def read_place(values: dict[str, Any]) -> CollectivePlace:
    """Rebuilds a CollectivePlace from what `dataclasses.asdict` made of it."""
    return CollectivePlace(**{**values, "layout": read_layout(values["layout"])})


def _open(store: TCPStore, place: CollectivePlace, generation: int, num_ranks: int, *, rank: int) -> Any:
    return cpu.open_group(
        PrefixStore(f"weights-{generation}", store),
        rank=rank,
        num_ranks=num_ranks,
        address=_own_address(place),
        timeout=timedelta(seconds=place.timeout),
    )


def _own_address(place: CollectivePlace) -> str:
    """Returns the address of this machine from which packets to the trainer leave."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((place.host, place.port))  # sends nothing
        return probe.getsockname()[0]


def _broadcast(group: Any, memory: Tensor) -> Work:
    options = BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    with _as_weight_error("the group is broken"):
        assert group is not None, "join first"
        return group.broadcast([memory], options)


@contextlib.contextmanager
def _as_weight_error(what: str) -> Iterator[None]:
    """Turns what torch's groups and stores raise into a WeightError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WeightError(f"{what} within engine.transfer_timeout, or a process died ({reason})") from error
