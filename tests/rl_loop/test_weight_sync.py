"""Weights through shared memory: they arrive as they were sent, or with an error that names the tensor."""

from __future__ import annotations

import multiprocessing as mp
import os
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.weight_sync.manifest import (
    ALIGNMENT,
    Bucket,
    Slot,
    WeightError,
    WeightManifest,
    check_complete,
    checksum,
    next_slot,
    open_bucket,
)
from rl.weight_sync.sender import WeightSender

BUCKET = 4096


def some_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 5), "b": (7,), "large": (3, 5000), "c": (16, 16), "one": (1,), "scalar": ()}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {f"{name}.bf16": tensor.bfloat16() for name, tensor in tensors.items()}


def received(manifest: WeightManifest) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for bucket in manifest.buckets for name, tensor in open_bucket(bucket)}


@settings(deadline=None)
@given(st.lists(st.integers(0, 3 * BUCKET), min_size=1, max_size=40))
def test_slots_never_overlap_and_fill_buckets_in_order(sizes: list[int]) -> None:
    slots: list[Slot] = []
    for size in sizes:
        slots.append(next_slot(slots[-1] if slots else None, size, BUCKET))
    assert [slot.num_bytes for slot in slots] == sizes
    for last, slot in zip(slots, slots[1:], strict=False):
        assert slot.offset % ALIGNMENT == 0
        same = slot.bucket == last.bucket and slot.offset >= last.offset + last.num_bytes
        assert same or (slot.bucket == last.bucket + 1 and slot.offset == 0)
    for slot in slots:  # only a tensor alone in its bucket may exceed the size
        assert slot.offset + slot.num_bytes <= BUCKET or slot.offset == 0


def test_tensors_arrive_bit_for_bit_and_memory_is_reused() -> None:
    with closing(WeightSender(bucket_bytes=BUCKET)) as sender:
        first = sender.send(some_weights(0).items(), version=1)
        paths = [bucket.path for bucket in first.buckets]
        second = sender.send(some_weights(1).items(), version=2)
        assert len(paths) > 2 and [bucket.path for bucket in second.buckets] == paths
        assert second.version == 2 and second.num_bytes == sum(t.nbytes for t in some_weights(1).values())
        for name, tensor in some_weights(1).items():
            assert torch.equal(received(second)[name], tensor), name
        with pytest.raises(
            WeightError, match="a arrived corrupted"
        ):  # the older manifest describes overwritten memory
            received(first)


def test_memory_grows_for_larger_models() -> None:
    with closing(WeightSender(bucket_bytes=64)) as sender:
        for size in (10, 4000, 10):
            weights = {f"{i}": torch.randn(size) for i in range(3)}
            assert all(
                torch.equal(received(sender.send(weights.items(), 1))[n], t) for n, t in weights.items()
            )


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 100_000))
def test_checksum_changes_with_any_byte_and_with_swapped_words(data: st.DataObject, size: int) -> None:
    memory = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    before = checksum(memory)
    place = data.draw(st.integers(0, size - 1))
    memory[place] ^= data.draw(st.integers(1, 255))
    assert checksum(memory) != before
    words = memory[: size // 8 * 8].view(torch.int64)
    if len(words) > 1:
        before, (i, j) = checksum(memory), (0, data.draw(st.integers(1, len(words) - 1)))
        words[[i, j]] = words[[j, i]]
        assert checksum(memory) != before or words[i] == words[j]


def test_corrupted_tensor_is_named() -> None:
    with closing(WeightSender(bucket_bytes=BUCKET)) as sender:
        manifest = sender.send(some_weights().items(), version=1)
        bucket = next(b for b in manifest.buckets if any(e.name == "c" for e in b.tensors))
        offset = next(e.offset for e in bucket.tensors if e.name == "c")
        flip_bit(bucket, offset + 100)
        with pytest.raises(WeightError, match="c arrived corrupted"):
            received(manifest)


def flip_bit(bucket: Bucket, offset: int) -> None:
    memory = torch.from_file(bucket.path, shared=True, size=bucket.num_bytes, dtype=torch.uint8)
    memory[offset] ^= 1


def test_missing_unknown_misshapen_and_doubled_tensors_are_named() -> None:
    weights = some_weights()
    expected = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    with closing(WeightSender(bucket_bytes=BUCKET)) as sender:
        check_complete(sender.send(weights.items(), 1), expected)
        pairs = list(weights.items())
        for sent, complaint in (
            ([p for p in pairs if p[0] != "b"], "b is missing"),
            ([*pairs, ("d", torch.zeros(2))], "d is not a tensor of this model"),
            ([*pairs, pairs[0]], "a came 2 times"),
            ([("a", torch.zeros(5, 3)), *pairs[1:]], r"a has shape \(5, 3\), the model wants \(3, 5\)"),
        ):
            with pytest.raises(WeightError, match=complaint):
                check_complete(sender.send(sent, 1), expected)


def test_dtype_that_weights_do_not_have_is_refused() -> None:
    with closing(WeightSender()) as sender, pytest.raises(ValueError, match="ids is torch.int64"):
        sender.send([("ids", torch.zeros(3, dtype=torch.int64))], version=1)


def _send_and_wait(pipe: Connection) -> None:
    sender = WeightSender(bucket_bytes=BUCKET)
    pipe.send(sender.send(some_weights().items(), version=5))
    pipe.recv()


def test_another_process_reads_weights_until_the_sender_is_killed() -> None:
    pipe, child_pipe = mp.Pipe()
    child = mp.get_context("spawn").Process(target=_send_and_wait, args=(child_pipe,))
    child.start()
    try:
        assert pipe.poll(60)
        manifest: WeightManifest = pipe.recv()
        # anonymous memory: the kernel frees it with the process
        assert all(os.readlink(bucket.path).startswith("/memfd:") for bucket in manifest.buckets)
        assert all(torch.equal(received(manifest)[name], tensor) for name, tensor in some_weights().items())
    finally:
        child.kill()
        child.join()
    with pytest.raises(WeightError, match="is gone"):
        received(manifest)


def test_closed_sender_frees_the_weights() -> None:
    sender = WeightSender(bucket_bytes=BUCKET)
    manifest = sender.send(some_weights().items(), version=1)
    sender.close()
    with pytest.raises(WeightError, match="is gone"):
        received(replace(manifest, version=2))
