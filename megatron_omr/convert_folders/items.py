"""The tensors in the .distcp files of a checkpoint, streamed: each file is read once, from its beginning to its end.

An item of such a file is a zip archive by torch.save; the elements of its tensor lie in it as they are.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Any, cast

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_omr.checkpoint.metadata import read_item
from megatron_omr.checkpoint.shards import Place

BLOCK_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class Item:
    """A rectangle of the tensor `key`, and its place in a file."""

    key: str
    dtype: torch.dtype
    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    is_matrix: bool  # else a vector; both with or without a dimension of layers in front
    start: int
    num_bytes: int  # of the item, with what torch.save adds

    @property
    def width(self) -> int:
        return self.sizes[-1] if self.is_matrix else 1


def list_items(folder: Path, metadata: Metadata, keys: Mapping[str, bool]) -> dict[str, list[Item]]:
    """Returns the items of these tensors by the files that hold them, each file's in their order.

    Args:
        keys: the tensors' names, and whether each holds matrices.

    Raises:
        ValueError: the checkpoint does not say where some part lies.
    """
    files: defaultdict[str, list[Item]] = defaultdict(list)
    found: dict[Place, Any] = {
        (index.fqn, tuple(index.offset or ())): place for index, place in metadata.storage_data.items()
    }
    for key, is_matrix in keys.items():
        tensor = metadata.state_dict_metadata[key]
        assert isinstance(tensor, TensorStorageMetadata)
        for chunk in tensor.chunks:
            offset = tuple(chunk.offsets)
            place = found.get((key, offset))
            if place is None:
                raise ValueError(f"{folder / '.metadata'} does not say where {key} at {list(offset)} lies")
            files[place.relative_path].append(
                Item(
                    key=key,
                    dtype=tensor.properties.dtype,
                    offset=offset,
                    sizes=tuple(chunk.sizes),
                    is_matrix=is_matrix,
                    start=place.offset,
                    num_bytes=place.length,
                )
            )
    return {name: sorted(items, key=lambda item: item.start) for name, items in files.items()}


def stream_items(
    path: Path,
    items: list[Item],
    *,
    sum: str | None,
    on_bytes: Callable[[int], object],
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[Item, int, Tensor]]:
    """Yields each item's elements in blocks of rows: item, first row, [rows, width].

    Rows are those of the item with its dimensions but the last as one; of a vector, each element is one. A block is
    valid until the next one.

    Args:
        sum: what all bytes of the file must be summed up to; None reads the items alone.

    Raises:
        ValueError: the file is damaged.
    """
    total, memory = xxhash.xxh3_64(), bytearray(block_bytes)
    add = total.update if sum is not None else len
    with path.open("rb", buffering=0) as file:
        places = [(_find_elements(path, file, item), item) for item in items]
        file.seek(0)
        for start, item in places:
            if sum is not None:
                _skip(path, file, start, memory, total, on_bytes)
            file.seek(start)
            width = item.width
            row_bytes = width * item.dtype.itemsize
            memory = memory if len(memory) >= row_bytes else bytearray(row_bytes)
            rows, step = math.prod(item.sizes) // width, len(memory) // row_bytes
            for first in range(0, rows, step):
                count = min(step, rows - first)
                block = memoryview(memory)[: count * row_bytes]
                _fill(path, file, block)
                add(block)
                on_bytes(len(block))
                yield item, first, torch.frombuffer(block, dtype=item.dtype).view(count, width)
        if sum is not None:
            _skip(path, file, path.stat().st_size, memory, total, on_bytes)
        if sum is not None and total.hexdigest() != sum:
            raise damaged(path, f"its sum is {total.hexdigest()}, written was {sum}")


def _find_elements(path: Path, file: FileIO, item: Item) -> int:
    """Returns the file's byte at which the item's elements begin."""
    try:
        tensor, start = read_item(cast("IO[bytes]", _Slice(file, item.start, item.num_bytes)))
    except ValueError as error:
        raise damaged(path, f"{item.key} cannot be read from it") from error
    if (tensor.dtype, tensor.numel()) != (item.dtype, math.prod(item.sizes)) or not tensor.is_contiguous():
        raise damaged(path, f"it does not hold {list(item.sizes)} of {item.key}")
    return item.start + start


def _skip(
    path: Path,
    file: FileIO,
    end: int,
    memory: bytearray,
    total: xxhash.xxh3_64,
    on_bytes: Callable[[int], object],
) -> None:
    """Sums up what lies between the file's position and `end`."""
    while (left := end - file.tell()) > 0:
        block = memoryview(memory)[: min(left, len(memory))]
        _fill(path, file, block)
        total.update(block)
        on_bytes(len(block))


def _fill(path: Path, file: FileIO, block: memoryview) -> None:
    read = 0
    while read < len(block):
        try:
            count = file.readinto(block[read:])
        except OSError as error:
            raise damaged(path, f"byte {file.tell():,} cannot be read ({error.strerror})") from error
        if not count:
            raise damaged(path, f"it ends at byte {file.tell():,}, in the middle of a tensor")
        read += count


def damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged: {what}; take another step-* folder")


class _Slice(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: FileIO, start: int, num_bytes: int) -> None:
        self._file, self._start, self._num_bytes, self._position = file, start, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = begin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._num_bytes - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
