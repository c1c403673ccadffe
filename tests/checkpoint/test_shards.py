"""Rectangles of tensors: cut from flat ranges, written once, read back at any other cut."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader

from data_pipeline.files import read_json
from megatron_omr.checkpoint.files import WrittenFile, write_metadata, write_shards
from megatron_omr.checkpoint.shards import Shard, plan_write, read_shards, split_range


@given(st.data(), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_rectangles_hold_the_range_in_order(data: st.DataObject, shape: list[int]) -> None:
    numbers = torch.arange(math.prod(shape)).view(shape)
    start = data.draw(st.integers(0, numbers.numel()))
    end = data.draw(st.integers(start, numbers.numel()))
    rectangles = split_range(shape, start, end)
    parts = [numbers[tuple(slice(o, o + s) for o, s in zip(*place, strict=True))] for place in rectangles]
    found = torch.cat([part.flatten() for part in parts]) if parts else torch.empty(0, dtype=torch.long)
    assert found.tolist() == list(range(start, end))
    assert len(rectangles) <= 2 * len(shape) - 1


WHOLE = {"a": torch.arange(24.0).view(4, 6), "b": torch.arange(7, dtype=torch.bfloat16)}


def cut(key: str, start: int, end: int, *, to_read: bool = False) -> list[Shard]:
    """Returns elements start:end of a whole tensor as shards; empty ones, `to_read`."""
    whole, shards = WHOLE[key], []
    for offset, sizes in split_range(whole.shape, start, end):
        data = whole[tuple(slice(o, o + s) for o, s in zip(offset, sizes, strict=True))].contiguous()
        data = torch.full_like(data, -1) if to_read else data
        place = {"global_shape": tuple(whole.shape), "offset": offset, "sizes": sizes}
        shards.append(Shard(key=key, **place, dtype=whole.dtype, data=data))
    return shards


def write(folder: Path, shards: list[Shard]) -> WrittenFile:
    plan = plan_write(shards)
    assert plan.places == {shard.place for shard in shards} and plan.metadata is not None
    written = write_shards(folder / "a.distcp", shards)
    write_metadata(folder, plan.metadata, [written])
    return written


@pytest.mark.parametrize(("at", "to_read_at"), [(0, 5), (5, 17), (9, 9), (13, 1)])
def test_any_cut_reads_any_other(tmp_path: Path, at: int, to_read_at: int) -> None:
    parts = [shard for bounds in ((0, at), (at, 24)) for shard in cut("a", *bounds)]
    lazy = cut("b", 0, 7)[0]
    written = write(tmp_path, [*parts, Shard(**vars(lazy) | {"data": lazy.tensor})])
    data = (tmp_path / "a.distcp").read_bytes()
    assert (written.num_bytes, written.sum) == (len(data), xxhash.xxh3_64_hexdigest(data))
    assert read_json(tmp_path / "metadata.json")["sharded_backend"] == "torch_dist"
    wanted = [
        shard for bounds in ((0, to_read_at), (to_read_at, 24)) for shard in cut("a", *bounds, to_read=True)
    ]
    wanted += cut("b", 2, 5, to_read=True)
    read_shards(tmp_path, wanted, FileSystemReader(tmp_path).read_metadata())
    for shard in wanted:
        place = tuple(slice(o, o + s) for o, s in zip(shard.offset, shard.sizes, strict=True))
        assert torch.equal(shard.tensor(), WHOLE[shard.key][place])


def test_views_of_large_storages_are_written_alone(tmp_path: Path) -> None:
    large = torch.zeros(10**6)
    view = Shard(key="v", global_shape=(10,), offset=(0,), sizes=(10,), dtype=large.dtype, data=large[5:15])
    assert write_shards(tmp_path / "v.distcp", [view]).num_bytes < 10_000


def test_overlapping_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="validate"):
        plan_write([*cut("a", 0, 12), *cut("a", 6, 24)])


def test_other_models_are_refused_with_their_differences(tmp_path: Path) -> None:
    write(tmp_path, cut("a", 0, 24))
    metadata = FileSystemReader(tmp_path).read_metadata()
    other: Any = {"global_shape": (4, 7), "offset": (0, 0), "sizes": (4, 7), "dtype": torch.float32}
    shards = [*cut("b", 0, 7), Shard(key="a", **other, data=torch.zeros(4, 7))]
    with pytest.raises(ValueError, match=r"it lacks b; a has shape \[4, 6\], the model wants \[4, 7\]"):
        read_shards(tmp_path, shards, metadata)


def test_elements_that_no_shard_holds_are_missed(tmp_path: Path) -> None:
    """The tensors that are read may not have been set to anything before."""
    write(tmp_path, [shard for bounds in ((0, 12), (12, 24)) for shard in cut("a", *bounds)])
    metadata = FileSystemReader(tmp_path).read_metadata()
    found: Any = metadata.state_dict_metadata["a"]
    found.chunks.pop()
    with pytest.raises(ValueError, match=r"holds 12 of 24 elements; take another step-"):
        read_shards(tmp_path, cut("a", 0, 24, to_read=True), metadata)


def test_full_disk_is_an_error() -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space"):
        write_shards(Path("/dev/full"), cut("a", 0, 24))


def test_signal_that_comes_while_the_disk_is_waited_for_stays_itself(tmp_path: Path) -> None:
    """torch would raise its own error about the bytes that are missing."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    path, before = tmp_path / "a", signal.signal(signal.SIGALRM, leave)
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # reads nothing: writing waits
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(SystemExit):
            write_shards(path, cut("a", 0, 24) * 1_000)
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(reader)
