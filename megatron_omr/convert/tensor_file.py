"""The format of a safetensors file: where each tensor lies in it.

8 bytes with the length of the header, the header in JSON, then the tensors' elements. safetensors itself maps a file
into memory; these places are read and written with plain calls, so that no page of a large file counts as memory.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.files import parse_json, to_json

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that weights can have, by the format's names."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = 8  # bytes that hold the header's length
_ALIGNMENT = 8
_MAX_HEADER = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """A tensor in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Its first byte, counted from the beginning of the file."""
    num_bytes: int


def lay_out(
    tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]],
) -> tuple[bytes, dict[str, TensorPlace]]:
    """Returns the beginning of a file that holds these tensors, and their places: as safetensors orders them."""
    ordered = sorted(tensors, key=lambda tensor: (-tensor[2].itemsize, tensor[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    found: list[tuple[str, str, tuple[int, ...], int, int]] = []
    end = 0
    for name, shape, dtype in ordered:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        found.append((name, _NAMES[dtype], shape, start, end - start))
    text = to_json(header, compact=True, ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    first = _LENGTH + len(text)
    places = {
        name: TensorPlace(name=name, dtype=dtype, shape=shape, start=first + start, num_bytes=num_bytes)
        for name, dtype, shape, start, num_bytes in found
    }
    return len(text).to_bytes(_LENGTH, "little") + text, places


def read_places(path: Path) -> dict[str, TensorPlace]:
    """Returns the places of all tensors of a file.

    Raises:
        ValueError: the file is not there, is damaged, or has another length than its header says.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(size - _LENGTH, _MAX_HEADER):
                raise ValueError(f"its header would have {length} bytes")
            header = parse_json(file.read(length))
        places, end = _read_header(header, _LENGTH + length)
        if end != size:
            raise ValueError(f"it has {size:,} bytes, its header says {end:,}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    return places


def _read_header(
    header: Mapping[str, dict[str, list[int]]], first: int
) -> tuple[dict[str, TensorPlace], int]:
    """Returns the places, and the file's length; tensors must follow each other without gaps."""
    entries = [
        (*entry["data_offsets"], name, entry) for name, entry in header.items() if name != "__metadata__"
    ]
    places, last = {}, 0
    for start, end, name, entry in sorted(entries, key=lambda found: found[:3]):
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        known = DTYPES.get(dtype)
        if start != last or end < start or (known and end - start != math.prod(shape) * known.itemsize):
            raise ValueError(f"the header gives {name} the bytes {start}:{end}")
        places[name] = TensorPlace(
            name=name, dtype=dtype, shape=shape, start=first + start, num_bytes=end - start
        )
        last = end
    return places, first + last


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error) if path.is_file() else "it does not exist"
    return ValueError(f"{path} cannot be read: {reason}; fetch the file again")


def as_bytes(tensor: Tensor) -> memoryview:
    """Returns the elements of a tensor on the CPU in row-major order: its own memory where it lies so, else a copy."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    # not numpy(): after it torch cannot free the storage of a tensor any more, as swap/offload.py does
    memory: Any = (ctypes.c_uint8 * data.numel()).from_address(data.data_ptr())
    memory.tensor = data  # lives as long as the view
    return memoryview(memory).cast("B")


def write_at(descriptor: int, data: memoryview, start: int) -> None:
    """Writes all of `data` into a file from byte `start` on; several threads may write at once."""
    written = 0
    while written < len(data):  # a call writes 2 GiB at most
        written += os.pwrite(descriptor, data[written:], start + written)


def read_at(descriptor: int, out: memoryview, start: int, path: Path) -> None:
    """Fills `out` from a file from byte `start` on; raises ValueError that names `path` where that cannot be read."""
    read = 0
    while read < len(out):
        try:
            count = os.preadv(descriptor, [out[read:]], start + read)
        except OSError as error:
            raise ValueError(f"{path} cannot be read at byte {start + read:,}: {error.strerror}") from error
        if count == 0:
            raise ValueError(
                f"{path} ends at byte {start + read:,}, in the middle of a tensor; fetch the file again"
            )
        read += count
