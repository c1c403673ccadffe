"""The pickle of a checkpoint, `.metadata`: written, and read without running what may be hidden in it.

torch would unpickle it without asking. Only what such a file consists of may be named in it: a pickle that names
nothing else runs no code. (Tensors are read by torch with weights_only, which does the same.)
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

_NAME = ".metadata"
_ALLOWED = {
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


def write_metadata(folder: Path, metadata: Metadata, places: Mapping[MetadataIndex, Any]) -> None:
    """Writes names, shapes and places (torch's _StorageInfo) of a checkpoint's tensors, synced to the disk.

    As torch's FileSystemWriter does, but for the folder's path, which is no part of the contents.
    """
    metadata.storage_data = places
    metadata.version = CURRENT_DCP_VERSION
    with (folder / _NAME).open("wb") as file:
        pickle.dump(metadata, file)
        file.flush()
        os.fsync(file.fileno())


def read_metadata(checkpoint: Path) -> Metadata:
    """Returns the names, shapes and places of a checkpoint's tensors.

    Raises:
        ValueError: the file is missing or damaged, or names something that could run code; the message says which.
    """
    path = checkpoint / _NAME
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if type(metadata) is not Metadata:
            raise TypeError(f"it holds a {type(metadata)}")
    except _NameError as error:
        raise ValueError(
            f"{path} names {error}, which no checkpoint needs and which could run code: nothing of it was loaded"
        ) from error
    except (pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is missing or damaged; take another step-* folder") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not of a checkpoint ({error}); take another step-* folder") from error
    return metadata


def read_item(file: IO[bytes]) -> tuple[Tensor, int]:
    """Returns the tensor of an item of a .distcp file without its elements, and the item's byte at which these begin.

    Raises:
        ValueError: the item is damaged, or is no tensor.
    """
    try:
        tensor = torch.load(file, map_location="meta", weights_only=True)
        start = tensor.untyped_storage()._checkpoint_offset + tensor.storage_offset() * tensor.itemsize
    except (
        pickle.UnpicklingError,
        OSError,
        EOFError,
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(f"the item is damaged, or is no tensor: {error}") from error
    return tensor, start


class _NameError(Exception):
    """A pickle names what may not be named."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype)
        if is_dtype or name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise _NameError(f"{module}.{name}")
