"""Writes the weights of a Hugging Face folder as a Megatron checkpoint: shards for a layout, which any other reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.files import atomic_folder
from megatron_omr.checkpoint.files import write_shards
from megatron_omr.checkpoint.folder import complete_folder
from megatron_omr.checkpoint.shards import Shard, plan_write
from megatron_omr.config import ToMegatronConfig
from megatron_omr.convert.hf_folder import MAX_FILE_BYTES, HfTensors
from megatron_omr.convert.mapping import Rectangle, Rule, build_rules
from megatron_omr.convert.source import check_tensors, read_part
from megatron_omr.convert.tensor_file import DTYPES
from megatron_omr.convert_folders.progress import Converted, Stopwatch, check_room, show_progress
from megatron_omr.dtypes import torch_dtype
from megatron_omr.model_config import ModelConfig

BLOCK_BYTES = 2**26
"""Larger parts of a tensor are written as several shards of rows."""


def to_megatron(
    config: ToMegatronConfig, *, block_bytes: int = BLOCK_BYTES, max_file_bytes: int = MAX_FILE_BYTES
) -> Converted:
    """Writes the checkpoint `config.out`, complete or not at all; memory holds a few blocks.

    Raises:
        ValueError: the layout cannot hold the model; the folder does not hold what its config.json says, or a file of
            it is damaged.
        OSError: the disk is full, or cannot be written.
    """
    watch, out = Stopwatch(), Path(config.out)
    model = ModelConfig.from_hf(config.source)
    config.parallel.check_model(model)
    rules, dtype = build_rules(model), torch_dtype(model.precision)
    with HfTensors(Path(config.source)) as source:
        check_tensors(source, rules)
        dtypes = {DTYPES[source.places[name].dtype] for rule in rules for name in rule.hf}
        reader = _PartReader(source, dtype)
        shards = [
            shard
            for rule in rules
            for shard in cut_rule(rule, config.parallel.tp, dtype, reader, block_bytes)
        ]
        total = sum(shard.num_bytes for shard in shards)
        check_room(out, total)
        with show_progress(out, total) as bar, atomic_folder(out) as folder:
            written = [
                write_shards(folder / f"__{number}_0.distcp", part, on_bytes=bar.update)
                for number, part in enumerate(_divide(shards, max_file_bytes))
            ]
            metadata = plan_write(shards).metadata
            assert metadata is not None
            fields = {
                "step": 0,
                "world_size": 0,
                "layout": asdict(config.parallel),
                "device": "cpu",
                "state": {},
            }
            complete_folder(folder, fields, metadata=metadata, written=written, template=config.source)
    return watch.finish(out, total, read=dtypes, written=dtype)


def cut_rule(
    rule: Rule, tp: int, dtype: torch.dtype, reader: _PartReader, block_bytes: int
) -> Iterator[Shard]:
    """Yields the shards of a parameter: of each tensor-parallel rank's parts, blocks of rows.

    Blocks of the same rows follow each other, so that these are read once.
    """
    row_bytes = math.prod(rule.shape[1:]) * dtype.itemsize
    rows = max(1, block_bytes // row_bytes)
    parts = [part for parts in rule.cut(tp)[: None if rule.dim is not None else 1] for part in parts]
    for blocks in zip(*(list(_split_rows(part, rows)) for part in parts), strict=True):
        for block in blocks:
            offset, sizes = rule.place(block)
            yield Shard(
                key=rule.key,
                global_shape=rule.global_shape,
                offset=offset,
                sizes=sizes,
                dtype=dtype,
                data=partial(reader.read, rule, block),
            )


def _split_rows(part: Rectangle, rows: int) -> Iterator[Rectangle]:
    (first, *columns), (count, *widths) = part
    for start in range(0, count, rows):
        yield (first + start, *columns), (min(rows, count - start), *widths)


class _PartReader:
    """Reads parts of parameters into memory of its own: a part is valid until the next one is read."""

    def __init__(self, source: HfTensors, dtype: torch.dtype) -> None:
        self._source = source
        self._dtype = dtype
        self._part = bytearray()
        self._rows = bytearray()
        self._held: tuple[str, int] | None = None  # the rows in self._rows

    def read(self, rule: Rule, part: Rectangle) -> Tensor:
        (first, *columns), sizes = part
        self._part, out = self._take(self._part, sizes)
        if sizes[1:] == rule.shape[1:]:
            read_part(self._source, rule, part, out)
            return out
        whole = (sizes[0], *rule.shape[1:])
        self._rows, rows = self._take(self._rows, whole)
        if self._held != (rule.megatron, first):
            self._held = None
            read_part(self._source, rule, ((first, 0), whole), rows)
            self._held = (rule.megatron, first)
        return out.copy_(rows.narrow(1, columns[0], sizes[1]))

    def _take(self, memory: bytearray, sizes: Sequence[int]) -> tuple[bytearray, Tensor]:
        """Returns `memory`, or a larger one, and a tensor in it whose storage has not a byte more."""
        count = math.prod(sizes)
        if len(memory) < count * self._dtype.itemsize:
            memory = bytearray(count * self._dtype.itemsize)
            self._held = None
        return memory, torch.frombuffer(memory, dtype=self._dtype, count=count).view(sizes)


def _divide(shards: Sequence[Shard], max_bytes: int) -> list[list[Shard]]:
    """Returns the shards of each file, in their order: as few files as possible, of about the same size."""
    total = sum(shard.num_bytes for shard in shards)
    number = -(-total // max_bytes)
    files: list[list[Shard]] = [[] for _ in range(number)]
    before = 0
    for shard in shards:
        files[min(before * number // total, number - 1)].append(shard)
        before += shard.num_bytes
    return [file for file in files if file]
