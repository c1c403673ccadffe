"""Completes the folder of a checkpoint once all shards are in it. Imports no Megatron."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import Metadata

from megatron_omr.checkpoint.files import DESCRIPTIONS, WrittenFile, write_metadata
from megatron_omr.checkpoint.manifest import FileSum, sum_file, write_manifest
from megatron_omr.convert.hf_folder import copy_template


def complete_folder(
    folder: Path,
    fields: Mapping[str, Any],
    *,
    metadata: Metadata,
    written: Sequence[WrittenFile],
    template: str | Path,
) -> None:
    """Writes all but the shards: their description, hf/, and last state.json. All files are synced to the disk.

    Args:
        fields: what the checkpoint is, for state.json: at least step and world_size.
        metadata: of the tensors, without places.
        template: the model's Hugging Face folder, whose small files hf/ gets.
    """
    write_metadata(folder, metadata, written)
    copy_template(template, folder / "hf")
    sums = {file.name: FileSum(num_bytes=file.num_bytes, sum=file.sum) for file in written}
    for path in [*(folder / name for name in DESCRIPTIONS), *(folder / "hf").iterdir()]:
        sums[str(path.relative_to(folder))] = sum_file(path)
        _sync(path)
    _sync(folder / "hf")
    write_manifest(folder, fields, sums)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
