"""Writes the weights of a Megatron checkpoint, of any layout, as a Hugging Face folder."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from data_pipeline.files import atomic_folder
from megatron_omr.checkpoint.manifest import NAME, check_files, read_manifest
from megatron_omr.checkpoint.metadata import read_metadata
from megatron_omr.convert.hf_folder import MAX_FILE_BYTES, HfWriter, copy_template
from megatron_omr.convert.mapping import build_rules
from megatron_omr.convert.ops import Segment, select_rows
from megatron_omr.convert.rule import Rule
from megatron_omr.convert_folders.config import ToHfConfig
from megatron_omr.convert_folders.items import BLOCK_BYTES, Item, damaged, list_items, stream_items
from megatron_omr.convert_folders.progress import Converted, Stopwatch, check_room, show_progress
from megatron_omr.dtypes import torch_dtype
from megatron_omr.model_config import ModelConfig

_PARTS = ("language_model.", "vision_model.")
"""How the keys of weights begin; checkpoints of training also hold the optimizer's states."""


def to_hf(
    config: ToHfConfig, *, block_bytes: int = BLOCK_BYTES, max_file_bytes: int = MAX_FILE_BYTES
) -> Converted:
    """Writes the folder `config.out`, complete or not at all; memory holds a few blocks.

    Weights are cast to the dtype that config.json names.

    Raises:
        ValueError: a file of the checkpoint is damaged, or it does not hold the model of its config.json.
        OSError: the disk is full, or cannot be written.
    """
    watch, source, out = Stopwatch(), Path(config.source), Path(config.out)
    template = config.template or source / "hf"
    sums = _check_small_files(source)
    model = ModelConfig.from_hf(template)
    rules, dtype = build_rules(model), torch_dtype(model.precision)
    metadata = read_metadata(source)
    _check_shapes(source, metadata, rules)
    keys = _describe_keys(rules)
    files = list_items(source, metadata, {rule.key: len(rule.shape) > 1 for rule in rules})
    _check_shard_files(source, files, sums)
    entries = [
        (name, shape, dtype)
        for rule in rules
        for name, shape in zip(rule.stored, rule.hf_shapes(), strict=True)
    ]
    total = sum(math.prod(shape) for _, shape, _ in entries) * dtype.itemsize
    check_room(out, total)
    to_read = sum((source / name).stat().st_size for name in files)
    with (
        show_progress(out, to_read) as bar,
        atomic_folder(out) as folder,
        HfWriter(folder, entries, max_file_bytes) as writer,
    ):
        copy_template(template, folder)
        for name, items in files.items():
            wanted = sums[name] if sums else None
            for item, first, block in stream_items(
                source / name, items, sum=wanted, on_bytes=bar.update, block_bytes=block_bytes
            ):
                _write_rows(writer, keys[item.key], item, first, block.to(dtype))
    dtypes = {item.dtype for items in files.values() for item in items}
    return watch.finish(out, total, read=dtypes, written=dtype)


def _check_small_files(source: Path) -> dict[str, str]:
    """Checks all files of a checkpoint but its shards; returns the sums of these, none where Megatron-Core wrote it.

    Megatron-Core's have neither state.json nor hf/: where only one of these is missing, the checkpoint is incomplete.

    Raises:
        ValueError: one is damaged.
    """
    if (source / ".metadata").exists() and not (source / NAME).exists() and not (source / "hf").exists():
        return {}
    manifest = read_manifest(source)
    small = {name: found for name, found in manifest.files.items() if not name.endswith(".distcp")}
    check_files(source, replace(manifest, files=small))
    return {name: found.sum for name, found in manifest.files.items() if name not in small}


def _check_shard_files(source: Path, files: Collection[str], sums: Mapping[str, str]) -> None:
    """Raises ValueError where a file of shards is not there, or state.json does not list it."""
    for name in files:
        if not (source / name).is_file():
            raise damaged(source / name, "it does not exist")
        if sums and name not in sums:
            raise damaged(source / NAME, f"it does not list {name}")


def _check_shapes(source: Path, metadata: Metadata, rules: Sequence[Rule]) -> None:
    """Raises ValueError, with all of them listed, where the checkpoint lacks keys, has others, or in other shapes."""
    wanted = {rule.key: rule.global_shape for rule in rules}
    faults = [
        f"it has {key}, which the model does not"
        for key in metadata.state_dict_metadata
        if key.startswith(_PARTS) and key not in wanted and "_extra_state" not in key
    ]
    for key, shape in wanted.items():
        found = metadata.state_dict_metadata.get(key)
        if not isinstance(found, TensorStorageMetadata):
            faults.append(f"it lacks {key}")
        elif tuple(found.size) != shape:
            faults.append(f"{key} is {list(found.size)} and should be {list(shape)}")
    if faults:
        raise ValueError(
            f"{source} does not hold the model of its config.json: {'; '.join(faults)}. Take the config.json of the "
            "model that was trained"
        )


@dataclass(frozen=True, kw_only=True)
class _Parameter:
    """What the rows of a parameter, of one layer, are in Hugging Face files."""

    names: tuple[str, ...]
    widths: tuple[int, ...]
    segments: list[Segment]


@dataclass(frozen=True, kw_only=True)
class _Key:
    """A tensor of the checkpoint: the parameters of all layers, or one."""

    by_layer: list[_Parameter]
    has_layers: bool
    experts: tuple[int, ...] = ()  # of experts, the shape [E, out, in] of a layer's

    def locate(self, item: Item) -> tuple[int, int, int, int]:
        """Returns an item's first layer, its rows of each layer, the first of them, and its first column."""
        offset, sizes = (
            (item.offset, item.sizes) if self.has_layers else ((0, *item.offset), (1, *item.sizes))
        )
        layer, row, *columns = offset
        return layer, sizes[1], row, columns[0] if columns else 0


def _describe_keys(rules: Sequence[Rule]) -> dict[str, _Key]:
    keys: dict[str, _Key] = {}
    for rule in rules:
        widths = tuple(math.prod(shape[1:]) for shape in rule.hf_shapes())
        experts = rule.shape if rule.is_of_experts else ()
        key = keys.setdefault(rule.key, _Key(by_layer=[], has_layers=rule.layer is not None, experts=experts))
        key.by_layer.append(_Parameter(names=rule.stored, widths=widths, segments=rule.segments()))
    return keys


def _write_rows(writer: HfWriter, key: _Key, item: Item, first: int, block: Tensor) -> None:
    """Writes rows of an item, from its row `first` on, to where they belong; they may be of several layers."""
    if key.experts:
        _write_experts(writer, key, item, first, block)
        return
    first_layer, rows, first_row, column = key.locate(item)
    done = 0
    while done < len(block):
        layer, row = divmod(first + done, rows)
        count = min(len(block) - done, rows - row)
        parameter = key.by_layer[first_layer + layer]
        for place, (tensor, hf_row, number) in select_rows(parameter.segments, first_row + row, count):
            kept = 0 if tensor is None else min(block.size(1), parameter.widths[tensor] - column)
            if tensor is None or kept <= 0:  # zeros that Megatron's layers have
                continue
            part = block[done + place : done + place + number, :kept]
            writer.write_block(parameter.names[tensor], part, first_row=hf_row, first_column=column)
        done += count


def _write_experts(writer: HfWriter, key: _Key, item: Item, first: int, block: Tensor) -> None:
    """Writes rows of experts' matrices, which are columns of those in the files."""
    offset, sizes = (item.offset, item.sizes) if key.has_layers else ((0, *item.offset), (1, *item.sizes))
    _, rows, columns = key.experts
    done = 0
    while done < len(block):
        matrix, row = divmod(first + done, sizes[2])
        layer, expert = divmod(matrix, sizes[1])
        count = min(len(block) - done, sizes[2] - row)
        writer.write_block(
            key.by_layer[offset[0] + layer].names[0],
            block[done : done + count].T.contiguous(),
            first_row=(offset[1] + expert) * columns + offset[3],
            first_column=offset[2] + row,
            width=rows,
        )
        done += count
