"""Writes the weights of a Hugging Face folder as a Megatron checkpoint: shards for a layout, which any other reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event, Lock, local

import torch
from torch import Tensor

from data_pipeline.files import atomic_folder
from megatron_omr.checkpoint.files import WrittenFile, write_shards
from megatron_omr.checkpoint.folder import complete_folder
from megatron_omr.checkpoint.shards import Shard, plan_write
from megatron_omr.config import ParallelConfig
from megatron_omr.convert.hf_folder import MAX_FILE_BYTES, HfTensors
from megatron_omr.convert.mapping import build_rules
from megatron_omr.convert.rule import Rectangle, Rule
from megatron_omr.convert.source import check_tensors, read_part
from megatron_omr.convert.tensor_file import DTYPES
from megatron_omr.convert_folders.config import ToMegatronConfig
from megatron_omr.convert_folders.progress import Converted, Stopwatch, check_room, show_progress
from megatron_omr.dtypes import torch_dtype
from megatron_omr.model_config import ModelConfig

_THREADS = 2
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
            shard for rule in rules for shard in cut_rule(rule, config.parallel, dtype, reader, block_bytes)
        ]
        total = sum(shard.num_bytes for shard in shards)
        check_room(out, total)
        with show_progress(out, total) as bar, atomic_folder(out) as folder:
            written = _write_files(folder, _divide(shards, max_file_bytes), bar.update)
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


def _write_files(
    folder: Path, files: Sequence[Sequence[Shard]], on_bytes: Callable[[int], object]
) -> list[WrittenFile]:
    """Writes files of shards in two threads, which wait most of the time for the kernel to copy and to sync."""
    lock, is_stopped = Lock(), Event()

    def count(num_bytes: int) -> None:
        if is_stopped.is_set():
            raise InterruptedError("another file could not be written")
        with lock:
            on_bytes(num_bytes)

    with ThreadPoolExecutor(_THREADS) as pool:
        tasks = [
            pool.submit(write_shards, folder / f"__{number}_0.distcp", shards, on_bytes=count)
            for number, shards in enumerate(files)
        ]
        try:
            return [task.result() for task in tasks]
        except BaseException:
            is_stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def cut_rule(
    rule: Rule, parallel: ParallelConfig, dtype: torch.dtype, reader: _PartReader, block_bytes: int
) -> Iterator[Shard]:
    """Yields the shards of a parameter: of each tensor-parallel rank's parts, blocks of rows.

    Blocks of the same rows follow each other, so that these are read once.
    """
    row_bytes = math.prod(rule.shape[1:]) * dtype.itemsize
    rows = max(1, block_bytes // row_bytes)
    tp = parallel.expert_tp if rule.is_of_experts else parallel.tp
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


class _Memory(local):
    """What a thread reads into."""

    def __init__(self) -> None:
        self.part = bytearray()
        self.rows = bytearray()
        self.held: tuple[str, int] | None = None  # the rows in self.rows


class _PartReader:
    """Reads parts of parameters into memory of its own: a part is valid until its thread reads the next one."""

    def __init__(self, source: HfTensors, dtype: torch.dtype) -> None:
        self._source = source
        self._dtype = dtype
        self._memory = _Memory()

    def read(self, rule: Rule, part: Rectangle) -> Tensor:
        memory, (offset, sizes) = self._memory, part
        memory.part, out = self._take(memory.part, sizes)
        if sizes[1:] == rule.shape[1:]:
            read_part(self._source, rule, part, out)
            return out
        whole = (sizes[0], *rule.shape[1:])
        memory.rows, rows = self._take(memory.rows, whole)
        if memory.held != (rule.megatron, offset[0]):
            memory.held = None
            read_part(self._source, rule, ((offset[0], *[0] * (len(whole) - 1)), whole), rows)
            memory.held = (rule.megatron, offset[0])
        window = [slice(start, start + size) for start, size in zip(offset[1:], sizes[1:], strict=True)]
        return out.copy_(rows[:, *window])

    def _take(self, memory: bytearray, sizes: Sequence[int]) -> tuple[bytearray, Tensor]:
        """Returns `memory`, or a larger one, and a tensor in it whose storage has not a byte more."""
        count = math.prod(sizes)
        if len(memory) < count * self._dtype.itemsize:
            memory = bytearray(count * self._dtype.itemsize)
            self._memory.held = None
        return memory, torch.frombuffer(memory, dtype=self._dtype, count=count).view(sizes)


def _divide(shards: Sequence[Shard], max_bytes: int) -> list[list[Shard]]:
    """Returns the shards of each file, in their order: files of about the same size, at least one a thread."""
    total = sum(shard.num_bytes for shard in shards)
    number = max(_THREADS, -(-total // max_bytes))
    files: list[list[Shard]] = [[] for _ in range(number)]
    before = 0
    for shard in shards:
        files[min(before * number // total, number - 1)].append(shard)
        before += shard.num_bytes
    return [file for file in files if file]
