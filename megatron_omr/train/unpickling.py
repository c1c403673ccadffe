"""Checks the pickles of a distributed checkpoint before torch and Megatron-Core unpickle them without asking.

They are: .metadata; common.pt; and in the .distcp files the items that are no tensors. (torch itself reads tensors
safely.) Only what a checkpoint consists of may be named in them: a pickle that names nothing else runs no code.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

_OF_METADATA = {
    "torch": {"Size"},  # and dtypes
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.planner": {
        *("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
    },
}


def check_pickles(checkpoint: Path) -> None:
    """Checks the files that will be unpickled, whoever wrote them.

    Raises:
        ValueError: one names something that could run code; the message says which.
        CheckpointingException: one is missing or damaged.
    """
    metadata = _checked(checkpoint / ".metadata", _load_metadata)
    _checked(checkpoint / "common.pt", _load_object)
    for index, place in metadata.storage_data.items():
        if not isinstance(metadata.state_dict_metadata[index.fqn], TensorStorageMetadata):
            _checked(
                checkpoint / place.relative_path,
                lambda file, place=place: _load_object(_slice(file, place.offset, place.length)),
            )


def _checked(path: Path, load: Callable[[IO[bytes]], Any]) -> Any:
    try:
        with path.open("rb") as file:
            return load(file)
    except pickle.UnpicklingError as error:
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} names {named[1]}, which no checkpoint needs and which could run code: nothing of it was loaded"
            ) from error
        raise CheckpointingException(f"{path} is damaged") from error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointingException(f"{path} is damaged") from error


def _load_metadata(file: IO[bytes]) -> Metadata:
    metadata = _MetadataUnpickler(file).load()
    if type(metadata) is not Metadata:
        raise TypeError(f"a {type(metadata)}")
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype)
        if is_dtype or name in _OF_METADATA.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")  # as torch says it


def _load_object(file: IO[bytes]) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _slice(file: IO[bytes], offset: int, length: int) -> IO[bytes]:
    file.seek(offset)
    return io.BytesIO(file.read(length))
