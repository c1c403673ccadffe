"""The files of a checkpoint: shards, their places, and what Megatron-Core's own reader asks for.

FOLDER/*.distcp        shards, each as torch.save writes it, one after the other
    .metadata          names, shapes and dtypes of the tensors, and the place of each shard
    metadata.json, common.pt    Megatron-Core's: the format, and nothing
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
import xxhash
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex

from data_pipeline.files import write_json
from megatron_omr.checkpoint import metadata as metadata_file
from megatron_omr.checkpoint.shards import Place, Shard

DESCRIPTIONS = (".metadata", "metadata.json", "common.pt")
"""The files that write_metadata writes."""

_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A file of shards: where each lies, and what its bytes are summed up to while they were written."""

    name: str
    num_bytes: int
    sum: str  # xxh3_64
    places: tuple[tuple[Place, int, int], ...]  # shard, its first byte, its number of bytes

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> WrittenFile:
        """Returns what asdict() made, after a way through JSON."""
        places = [((key, tuple(offset)), start, count) for (key, offset), start, count in fields["places"]]
        return cls(
            name=fields["name"], num_bytes=fields["num_bytes"], sum=fields["sum"], places=tuple(places)
        )


def write_shards(
    path: Path, shards: Iterable[Shard], *, on_bytes: Callable[[int], object] = lambda count: None
) -> WrittenFile:
    """Writes a file of shards, one tensor at a time, and syncs it to the disk.

    Args:
        on_bytes: called after each shard with its number of bytes.
    """
    places: list[tuple[Place, int, int]] = []
    torch.serialization.set_crc32_options(False)  # the sum of the file covers them, at a fraction of the cost
    with path.open("wb", buffering=0) as file:
        stream = _SummedStream(file)
        for shard in shards:
            start, tensor = stream.num_bytes, shard.tensor().cpu()
            if tensor.untyped_storage().nbytes() != tensor.nbytes:  # all of the storage would be written
                tensor = tensor.clone()
            stream.save(tensor)
            places.append((shard.place, start, stream.num_bytes - start))
            on_bytes(shard.num_bytes)
        os.fsync(file.fileno())
    return WrittenFile(name=path.name, num_bytes=stream.num_bytes, sum=stream.sum(), places=tuple(places))


class _SummedStream:
    """A file that sums up what is written to it; torch.save only appends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = xxhash.xxh3_64()
        self.num_bytes = 0
        self._error: BaseException | None = None  # a full disk, or a signal while it waited for the disk

    def save(self, tensor: torch.Tensor) -> None:
        try:
            torch.save(tensor, cast("IO[bytes]", self))
        except RuntimeError:  # torch's own, about the bytes that are missing, hides what write() raised
            if self._error is not None:
                raise self._error from None
            raise

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        written = 0
        try:
            self._sum.update(view)
            while written < len(view):  # a raw file may take less than all
                written += self._file.write(view[written:])
        except BaseException as error:
            self._error = error
            raise
        self.num_bytes += written
        return written

    def flush(self) -> None:
        self._file.flush()

    def sum(self) -> str:
        return self._sum.hexdigest()


def write_metadata(folder: Path, metadata: Metadata, written: Sequence[WrittenFile]) -> None:
    """Writes the files that describe those of all ranks."""
    places = {
        MetadataIndex(key, torch.Size(offset)): _StorageInfo(file.name, start, count)
        for file in written
        for (key, offset), start, count in file.places
    }
    metadata_file.write_metadata(folder, metadata, places)
    write_json(folder / "metadata.json", _FORMAT)
    torch.save({}, folder / "common.pt")
