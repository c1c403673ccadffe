"""Weights in shared memory, read by engines on the same machine while the trainer writes them.

The memory is anonymous (memfd): the kernel frees it when the trainer ends, even by a kill, so nothing is left in
/dev/shm, and its size limit in containers does not apply. It is kept until the next update, so that an engine started
in between reads the current weights without another export. Its first 64 bytes say which version it holds and how many
bytes of it are complete; they are read and written by system calls, which keep their order.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.weight_sync.layout import ALIGNMENT, Bucket, Layout, Piece, WeightError, read_layout
from rl.weight_sync.writing import write_weights

_HEADER = ALIGNMENT
_KEY, _VERSION, _READY = 0, 8, 16  # where the header's numbers are
_POLL_SECONDS = 0.0005


@dataclass(frozen=True, kw_only=True)
class SharedPlace:
    """The path and layout of the memory, for a process of the same user on this machine."""

    path: str
    key: int  # of this memory: another may have come to its path
    timeout: float  # seconds without a further byte
    layout: Layout


class SharedMemorySender:
    """Writes a model's weights into shared memory, to the same places in each update."""

    def __init__(self, layout: Layout, *, timeout: float) -> None:
        """Takes the memory, whose pages are taken when first written."""
        self._layout, self._size = layout, _HEADER + layout.num_bytes
        self._fd = os.memfd_create("omr-weights")
        os.truncate(self._fd, self._size)
        path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self._data = torch.from_file(path, shared=True, size=self._size, dtype=torch.uint8)[_HEADER:]
        key = secrets.randbits(63)
        self._put(_KEY, key)
        self.place = SharedPlace(path=path, key=key, timeout=timeout, layout=layout)

    def send(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Writes `weights`; an engine that still reads an older version sees that it is too late.

        Raises:
            ValueError: there are fewer or more tensors than planned.
        """
        self._put(_READY, 0)  # first: else the older bytes would count as the new version's
        self._put(_VERSION, version)
        write_weights(weights, self._layout, self)

    def reserve(self, bucket: Bucket, piece: Piece) -> Tensor:
        return self._data[bucket.start + piece.start : bucket.start + piece.end]

    def publish(self, bucket: Bucket, piece: Piece) -> None:
        self._put(_READY, bucket.start + piece.end)

    def close(self) -> None:
        """Frees the memory as soon as no engine reads it."""
        del self._data
        os.close(self._fd)

    def _put(self, place: int, value: int) -> None:
        os.pwrite(self._fd, value.to_bytes(8, "little"), place)


class SharedMemoryReader:
    """An engine's view of the memory, which it keeps from update to update."""

    def __init__(self, place: SharedPlace) -> None:
        """Opens the memory.

        Raises:
            WeightError: it is gone.
        """
        self._place = place
        try:
            self._file = open(place.path, "rb")  # noqa: SIM115 (until close)
        except OSError as error:
            raise self._gone() from error
        size = _HEADER + place.layout.num_bytes
        if os.fstat(self._file.fileno()).st_size != size or self._get(_KEY) != place.key:
            self._file.close()
            raise self._gone()
        path = f"/proc/self/fd/{self._file.fileno()}"
        self._data = torch.from_file(path, shared=False, size=size, dtype=torch.uint8)[_HEADER:]

    def receive(self, version: int) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors as the trainer writes them: read-only views, each after its bucket was checked.

        Raises:
            WeightError: the memory holds another version before all are read, a bucket is corrupted, or the trainer
                has ended or writes nothing for `timeout` seconds.
        """
        for bucket in self._place.layout.buckets:
            self._wait(version, bucket.start + bucket.num_bytes)
            memory = self._data[bucket.start : bucket.start + bucket.num_bytes]
            try:
                bucket.check(memory)
            except WeightError:
                self._check_version(version)
                raise
            yield from bucket.views(memory)

    def confirm(self, version: int) -> None:
        """Raises WeightError if a newer version was written while this one was loaded: views were not copied yet."""
        self._check_version(version)

    def close(self) -> None:
        """Unmaps the memory as soon as its views are gone."""
        del self._data
        self._file.close()

    def _wait(self, version: int, num_bytes: int) -> None:
        """Waits until the first `num_bytes` of `version` are complete."""
        seen, deadline = -1, 0.0
        while True:
            found = self._get(_VERSION), self._get(_READY)  # in this order: see SharedMemorySender.send
            if found[0] > version:
                raise _overwritten(version, found[0])
            if found[0] == version and found[1] >= num_bytes:
                return
            if found[1] != seen:
                seen, deadline = found[1], time.monotonic() + self._place.timeout
            if not Path(self._place.path).exists():
                raise self._gone()
            if time.monotonic() > deadline:
                raise WeightError(
                    f"the trainer wrote nothing of weights {version} for {self._place.timeout:g} s "
                    "(engine.transfer_timeout)"
                )
            time.sleep(_POLL_SECONDS)

    def _check_version(self, version: int) -> None:
        if (found := self._get(_VERSION)) != version:
            raise _overwritten(version, found)

    def _get(self, place: int) -> int:
        return int.from_bytes(os.pread(self._file.fileno(), 8, place), "little")

    def _gone(self) -> WeightError:
        return WeightError(
            f"shared memory {self._place.path} of {self._place.layout.num_bytes} bytes is gone: the trainer that made "
            "it has ended or runs on another machine; with engines on other machines set "
            "engine.weight_transfer=collective"
        )


def read_place(values: dict[str, Any]) -> SharedPlace:
    """Rebuilds a SharedPlace from what `dataclasses.asdict` made of it."""
    return SharedPlace(**{**values, "layout": read_layout(values["layout"])})


def _overwritten(version: int, found: int) -> WeightError:
    return WeightError(
        f"weights {version} were overwritten by weights {found} before all were read; ask for {found}"
    )
