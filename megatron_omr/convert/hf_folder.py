"""The files of a Hugging Face folder: tensors by name, config, tokenizer and processor. Imports no Megatron."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.files import atomic_writer, parse_json, to_json, write_json
from megatron_omr.convert.names import modern_name
from megatron_omr.convert.tensor_file import (
    DTYPES,
    TensorPlace,
    as_bytes,
    lay_out,
    read_at,
    read_places,
    write_at,
)

MAX_FILE_BYTES = 5 * 10**9
"""Most bytes of one file of weights."""
Entry = tuple[str, tuple[int, ...], torch.dtype]
"""A tensor's name in the files, its shape and dtype."""

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PROCESSOR = "preprocessor_config.json"
_COPIED_SUFFIXES = {".json", ".jinja", ".txt", ".model"}


class HfTensors:
    """The tensors of a folder by the names of transformers' modules, read in parts when asked for.

    A context manager: leaving the block closes the files. Several threads may read at once.
    """

    def __init__(self, folder: Path) -> None:
        """Reads where each tensor lies.

        Raises:
            ValueError: `folder` has no safetensors, one is damaged, or two tensors are the same in two spellings.
        """
        self.folder = folder
        self._places: dict[str, tuple[Path, TensorPlace]] = {}
        for stored, (file, place) in _find_places(folder).items():
            name = modern_name(stored)
            if name in self._places:
                raise ValueError(
                    f"{folder} has both {stored} and {self._places[name][1].name}; delete one of them"
                )
            self._places[name] = folder / file, place
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> HfTensors:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    @property
    def places(self) -> Mapping[str, TensorPlace]:
        return {name: place for name, (_, place) in self._places.items()}

    def read(self, name: str) -> Tensor:
        """Returns one tensor. Raises as read_rows()."""
        place = self._places[name][1]
        tensor = torch.empty(place.shape, dtype=DTYPES[place.dtype])
        self.read_rows(name, 0, tensor)
        return tensor

    def read_rows(self, name: str, first: int, out: Tensor) -> None:
        """Fills `out`, contiguous and of the tensor's dtype, with its rows from `first` on.

        Raises:
            ValueError: the file is damaged.
        """
        path, place = self._places[name]
        row = math.prod(place.shape[1:]) * out.element_size()
        assert out.dtype == DTYPES[place.dtype] and first * row + out.nbytes <= place.num_bytes
        read_at(self._descriptor(path), as_bytes(out), place.start + first * row, path)

    def _descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            # of two threads that open the same file, one keeps its descriptor and the other closes it
            opened = os.open(path, os.O_RDONLY)
            if self._descriptors.setdefault(path, opened) != opened:
                os.close(opened)
        return self._descriptors[path]


def _find_places(folder: Path) -> dict[str, tuple[str, TensorPlace]]:
    """Returns file and place of each tensor that the folder's index names, or its one file holds."""
    if not (folder / _INDEX).is_file() and not (folder / _WEIGHTS).is_file():
        raise ValueError(
            f"{folder} has neither {_WEIGHTS} nor {_INDEX}; give a Hugging Face folder with safetensors"
        )
    if not (folder / _INDEX).is_file():
        return {name: (_WEIGHTS, place) for name, place in read_places(folder / _WEIGHTS).items()}
    try:
        files: dict[str, str] = parse_json((folder / _INDEX).read_bytes())["weight_map"]
        paths = {file: folder / file for file in sorted({*files.values()})}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / _INDEX} has no weight_map; fetch the file again") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / _INDEX} cannot be read: {error}; fetch the file again") from error
    places = {file: read_places(path) for file, path in paths.items()}
    if lacking := [name for name, file in files.items() if name not in places[file]]:
        raise ValueError(
            f"{folder / files[lacking[0]]} lacks {_list_names(lacking)} of {_INDEX}; fetch it again"
        )
    return {name: (file, places[file][name]) for name, file in files.items()}


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class HfWriter:
    """Writes tensors, in any order, into model.safetensors, or into numbered files with an index beyond `max_bytes`.

    Names, shapes and dtypes are known beforehand, so that each tensor goes straight to its place: none is kept in
    memory. The files are complete and on the disk when the block ends.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry], max_bytes: int = MAX_FILE_BYTES) -> None:
        """Takes each tensor's name in the files, shape and dtype; they fill the files in this order."""
        self._folder = folder
        self._files = _divide(entries, max_bytes)
        self._places: dict[str, tuple[str, TensorPlace]] = {}
        self._left: dict[str, int] = {}  # of each tensor, the bytes that are yet to come
        self._descriptors: dict[str, int] = {}

    def __enter__(self) -> HfWriter:
        try:
            for file, entries in self._files.items():
                descriptor = os.open(self._folder / file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                self._descriptors[file] = descriptor
                beginning, places = lay_out(entries)
                write_at(descriptor, memoryview(beginning), 0)
                self._places |= {name: (file, place) for name, place in places.items()}
                self._left |= {name: place.num_bytes for name, place in places.items()}
        except BaseException:
            self._close()
            raise
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor. Raises as write_block(), and where the tensor has another shape than its entry."""
        shape = self._places[name][1].shape
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, and {self._folder} expects {list(shape)}")
        self.write_block(name, tensor.reshape(shape[0] if shape else 1, -1), first_row=0)

    def write_block(
        self, name: str, block: Tensor, *, first_row: int, first_column: int = 0, width: int | None = None
    ) -> None:
        """Writes a rectangle of a tensor, which counts as a matrix: its rows with all other dimensions as columns.

        Args:
            width: the columns of the matrix, where it is another one.

        Raises:
            KeyError: `name` is not among the entries.
            ValueError: the block lies outside the tensor, has another dtype, or was written before.
        """
        file, place = self._places[name]
        width = width or math.prod(place.shape[1:])
        rows, columns = block.shape
        lies_inside = (first_row + rows) * width <= math.prod(place.shape) and first_column + columns <= width
        if not lies_inside or block.dtype != DTYPES[place.dtype] or block.nbytes > self._left[name]:
            raise ValueError(
                f"{name}: [{rows}, {columns}] in {block.dtype} at row {first_row}, column {first_column} does not fit "
                f"into {list(place.shape)} in {place.dtype} of {self._folder / file}, or was written before"
            )
        start = place.start + (first_row * width + first_column) * block.element_size()
        data, descriptor = as_bytes(block), self._descriptors[file]
        if columns == width:
            write_at(descriptor, data, start)
        else:
            step, stride = columns * block.element_size(), width * block.element_size()
            for row in range(rows):
                write_at(descriptor, data[row * step : (row + 1) * step], start + row * stride)
        self._left[name] -= block.nbytes

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises ValueError where a tensor was not written."""
        try:
            if kind is None:
                self._finish()
        finally:
            self._close()

    def _finish(self) -> None:
        if missing := [name for name, left in self._left.items() if left]:
            raise ValueError(f"{self._folder} lacks {_list_names(missing)}, which were never written")
        for descriptor in self._descriptors.values():
            os.fsync(descriptor)
        if len(self._files) > 1:
            total = sum(place.num_bytes for _, place in self._places.values())
            weight_map = {name: file for name, (file, _) in self._places.items()}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            with atomic_writer(self._folder / _INDEX) as file:
                file.write(to_json(index, indent=2, sort_keys=True).encode() + b"\n")

    def _close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _divide(entries: Sequence[Entry], max_bytes: int) -> dict[str, list[Entry]]:
    """Returns the tensors of each file, by its name."""
    files: list[list[Entry]] = [[]]
    size = 0
    for name, shape, dtype in entries:
        num_bytes = math.prod(shape) * dtype.itemsize
        if files[-1] and size + num_bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append((name, shape, dtype))
        size += num_bytes
    if len(files) == 1:
        return {_WEIGHTS: files[0]}
    return {f"model-{i + 1:05}-of-{len(files):05}.safetensors": held for i, held in enumerate(files)}


def copy_template(template: str | Path, out: Path) -> None:
    """Copies all of a Hugging Face folder but its weights: config, tokenizer, processor, chat template.

    Of a folder saved by transformers 5, the image processor is also written as transformers 4 reads it.
    """
    from data_pipeline.encode.processor import pixel_limits, read_image_processor  # needs Pillow

    out.mkdir(parents=True, exist_ok=True)
    for file in Path(template).iterdir():
        if file.is_file() and file.suffix in _COPIED_SUFFIXES and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    if (out / "processor_config.json").is_file() and not (out / _PROCESSOR).is_file():
        _, processor = read_image_processor(out)
        smallest, largest = pixel_limits(processor)
        write_json(out / _PROCESSOR, {**processor, "min_pixels": smallest, "max_pixels": largest})
